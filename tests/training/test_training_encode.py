"""Encoded samples against Flux2KleinPipeline's own encoders, masks against block means, and what is computed when."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline
from PIL import Image
from tests.training.conftest import BUCKETS, half_mask, png_bytes

from likeness.errors import UserError
from likeness.store import Store
from likeness.tables import ENCODED, MANIFEST, read_rows, write_table
from likeness.training.buckets import cover_and_crop
from likeness.training.encode import mask_on_tokens, read_tensors


@pytest.fixture
def pipeline(tiny_folder):
    pipeline = Flux2KleinPipeline.from_pretrained(tiny_folder)
    pipeline.image_processor.check_image_input = lambda image: image
    return pipeline


def encoded_with_manifest(world):
    rows = read_rows(world.encoded, ENCODED)
    return list(zip(rows, read_rows(world.manifest, MANIFEST), strict=True))


def pixels_of(world, sha256):
    from likeness.photos.images import read_images

    path = next(image.path for image in read_images(world.images) if image.sha256 == sha256)
    return np.asarray(Image.open(path).convert("RGB"))


def test_embeddings_are_the_pipelines(photo_world, pipeline):
    photo_world.encode()
    for row, sample in encoded_with_manifest(photo_world):
        tensors = read_tensors(photo_world.store, [row["embedding_sha256"], row["empty_embedding_sha256"]])
        for sha256, prompt in ((row["embedding_sha256"], sample["caption"]), (row["empty_embedding_sha256"], "")):
            with torch.no_grad():
                other = pipeline.encode_prompt(prompt, max_sequence_length=64)[0][0]
            assert torch.allclose(tensors[sha256], other, atol=1e-5), prompt


def test_latents_of_targets_are_the_pipelines(photo_world, pipeline):
    photo_world.encode()
    sizes = set()
    for row, sample in encoded_with_manifest(photo_world):
        size = (row["width_px"], row["height_px"])
        sizes.add(size)
        pixels = cover_and_crop(pixels_of(photo_world, sample["image_sha256"]), size)
        image = pipeline.image_processor.preprocess(Image.fromarray(pixels), height=size[1], width=size[0])
        with torch.no_grad():
            other = pipeline._encode_vae_image(image, None)[0]
        found = read_tensors(photo_world.store, [row["latents_sha256"]])[row["latents_sha256"]]
        assert torch.allclose(found, other, atol=1e-5)
        assert found.shape[1:] == (size[1] // 4, size[0] // 4)
    assert sizes == {(32, 32), (48, 24), (24, 40)} or len(sizes) == 3


@pytest.mark.parametrize("cap", [None, 32])
def test_latents_of_references_are_the_pipelines(pair_world, pipeline, cap):
    world = pair_world
    buckets = BUCKETS.model_copy(update={"reference_resolution_px": cap})
    world.encode(buckets=(buckets,))
    counts = []
    for row, sample in encoded_with_manifest(world):
        counts.append(len(row["reference_latents_sha256s"]))
        for sha256, image_sha256 in zip(row["reference_latents_sha256s"], sample["reference_sha256s"], strict=True):
            image = Image.fromarray(pixels_of(world, image_sha256))
            if cap and image.width * image.height > cap**2:
                image = pipeline.image_processor._resize_to_target_area(image, cap**2)
            size = (image.width // 4 * 4, image.height // 4 * 4)
            image = pipeline.image_processor.preprocess(image, height=size[1], width=size[0], resize_mode="crop")
            with torch.no_grad():
                other = pipeline._encode_vae_image(image, None)[0]
            found = read_tensors(world.store, [sha256])[sha256]
            assert found.shape == other.shape
            assert torch.allclose(found, other, atol=1e-5)
    assert counts == [1, 1, 2, 3, 4]


def test_masks_are_block_means_on_the_token_grid():
    mask = np.random.default_rng(1).integers(0, 256, (24, 40), dtype=np.uint8)
    blocks = mask.reshape(6, 4, 10, 4).mean(axis=(1, 3)) / 255
    assert np.allclose(mask_on_tokens(mask, 4).numpy(), blocks, atol=1e-6)


def test_masks_follow_resize_and_crop(photo_world):
    photo_world.encode()
    rows = read_rows(photo_world.encoded)
    assert [row["weight_sha256"] is None for row in rows] == [False] * 4 + [True]
    for row in rows[:4]:
        weights = read_tensors(photo_world.store, [row["weight_sha256"]])[row["weight_sha256"]]
        half = weights.shape[1] // 2
        assert weights[:, :half].min() == 1 and weights[:, half:].max() == 0


def test_a_second_phase_computes_nothing(photo_world):
    world = photo_world
    assert world.encode() == 2
    write_table(world.manifest, MANIFEST, read_rows(world.manifest)[1:4])
    world.store = Store(world.store.root)
    assert world.encode() == 0
    assert not world.store.computed and world.store.reused["latents"] == 3


def test_only_a_new_caption_is_encoded(photo_world):
    world = photo_world
    world.encode()
    rows = read_rows(world.manifest)
    rows[2]["caption"] = "somebody else"
    write_table(world.manifest, MANIFEST, rows)
    world.store = Store(world.store.root)
    assert world.encode() == 1
    assert dict(world.store.computed) == {"embeddings": 1}


def test_another_resolution_adds_rows(photo_world):
    other = BUCKETS.model_copy(update={"resolution_px": 48})
    photo_world.encode(buckets=(BUCKETS, other))
    rows = read_rows(photo_world.encoded)
    assert [row["resolution_px"] for row in rows] == [32] * 5 + [48] * 5


def test_a_photo_that_changed_is_named(photo_world):
    changed = photo_world.root / "photos/p3.png"
    changed.write_bytes(png_bytes(np.zeros((40, 80, 3), dtype=np.uint8)))
    with pytest.raises(UserError, match=r"p3\.png: the file changed"):
        photo_world.encode()


def test_an_image_that_the_table_lacks_is_an_error(photo_world):
    rows = read_rows(photo_world.manifest)
    rows[0]["image_sha256"] = "0" * 64
    write_table(photo_world.manifest, MANIFEST, rows)
    with pytest.raises(UserError, match="000000000000… that the images table does not have"):
        photo_world.encode()


def test_a_mask_on_another_grid_is_an_error(photo_world):
    rows = read_rows(photo_world.manifest)
    rows[0]["mask_sha256"] = photo_world.store.save_blob(half_mask(32, 32))
    write_table(photo_world.manifest, MANIFEST, rows)
    with pytest.raises(UserError, match=r"p0\.png: its mask has 32×32 px, but the photo has 64×64"):
        photo_world.encode()


def test_an_empty_mask_is_an_error_only_where_nothing_else_is_learned(photo_world):
    rows = read_rows(photo_world.manifest)
    rows[0]["mask_sha256"] = photo_world.store.save_blob(png_bytes(np.zeros((64, 64), dtype=np.uint8)))
    write_table(photo_world.manifest, MANIFEST, rows)
    assert photo_world.encode(unmasked_weights=(0.1,)) == 2
    with pytest.raises(UserError, match=r"p0\.png: nothing of its mask lies inside"):
        photo_world.encode(unmasked_weights=(0.1, 0.0))


def test_a_much_enlarged_photo_is_warned_of(photo_world, caplog):
    photo_world.encode(buckets=(BUCKETS.model_copy(update={"resolution_px": 96}),))
    assert "p2.png" in caplog.text and "enlarged" in caplog.text
    assert "p0.png" not in caplog.text.replace("p0.png: 64×64 px are enlarged 1.5", "")


def test_nothing_heavy_is_imported_with_the_modules():
    code = (
        "import sys; import likeness.training.encode, likeness.training.train; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'diffusers', 'cv2', 'transformers')))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd="scripts", check=False)
    assert done.returncode == 0
