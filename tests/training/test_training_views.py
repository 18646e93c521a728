"""Flips and several resolutions: masks and landmarks stay where they were in the picture, and chance has an address."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.training.conftest import BUCKETS
from tests.training.test_training_encode import pixels_of
from tests.training.test_training_train import Killed, bytes_of, kill_at, train, verify_once  # noqa: F401

from likeness.config.training import BucketSettings, TrainingSettings
from likeness.store import sha256_of_file
from likeness.tables import ENCODED, MANIFEST, SAMPLE_FACES, read_rows, write_table
from likeness.training.buckets import (
    assign_bucket,
    bucket_sizes,
    cover_and_crop,
    mirror_box,
    mirror_landmarks,
    to_bucket,
)
from likeness.training.data import load_samples
from likeness.training.encode import as_shown, mask_on_tokens, read_tensors
from likeness.training.losses.identity import targets_of
from likeness.training.plan import Plan
from likeness.training.views import choose_views, sample_of
from likeness.training.weights import box_on_tokens

BOTH = {"flip": 0.5, "resolutions_px": (48,)}
SIZES = st.integers(24, 160)


@given(width=SIZES, height=SIZES, resolution=st.sampled_from([16, 32, 64]), data=st.data())
@settings(max_examples=60, deadline=None)
def test_landmarks_and_box_stay_on_their_pixels_under_crop_and_flip(width, height, resolution, data):
    """Every pixel carries its own place as its colour, so a landmark's pixel says where in the photo it came from."""
    size = assign_bucket(width, height, bucket_sizes(BucketSettings(resolution_px=resolution, bucket_step_px=4), 4))
    photo = np.zeros((height, width, 3), dtype=np.uint8)
    photo[..., 0], photo[..., 1] = np.arange(width), np.arange(height)[:, None]
    plain = cover_and_crop(photo, size)
    mirrored = as_shown(plain, True)
    points = [data.draw(st.floats(0, extent - 1)) for _ in range(5) for extent in (width, height)]
    in_plain = to_bucket(points, (width, height), size)
    in_mirrored = mirror_landmarks(in_plain, size[0])
    assert mirror_landmarks(in_mirrored, size[0]) == pytest.approx(in_plain)
    for place, other in enumerate((1, 0, 2, 4, 3)):
        x, y = (round(value) for value in in_plain[2 * place : 2 * place + 2])
        mirrored_x = size[0] - 1 - x
        assert abs(in_mirrored[2 * other] - mirrored_x) <= 0.5 + 1e-6
        if 0 <= x < size[0] and 0 <= y < size[1]:
            assert (plain[y, x] == mirrored[y, mirrored_x]).all()
    left, top = (data.draw(st.floats(0, extent / 2)) for extent in size)
    box = [left, top, left + size[0] / 3, top + size[1] / 3]
    grid = (size[1] // 4, size[0] // 4)
    flipped = box_on_tokens(mirror_box(box, size[0]), grid, 4)
    assert torch.allclose(flipped, box_on_tokens(box, grid, 4).flip(-1), atol=1e-5)


@given(
    width=SIZES, height=SIZES, resolution=st.sampled_from([16, 32, 64]), mirrored=st.booleans(), seed=st.integers(0, 9)
)
@settings(max_examples=60, deadline=None)
def test_masks_take_the_way_of_their_photo_under_crop_and_flip(width, height, resolution, mirrored, seed):
    """A photo whose brightness is its own mask: on every token, the mask's share is the photo's mean brightness."""
    size = assign_bucket(width, height, bucket_sizes(BucketSettings(resolution_px=resolution, bucket_step_px=4), 4))
    generator = np.random.default_rng(seed)
    mask = np.zeros((height, width), dtype=np.uint8)
    top, left = generator.integers(0, height // 2), generator.integers(0, width // 2)
    mask[top : top + height // 3, left : left + width // 3] = 255
    photo = np.repeat(mask[:, :, None], 3, axis=2)
    shown = as_shown(cover_and_crop(photo, size), mirrored)[..., 0].astype(float)
    weights = mask_on_tokens(as_shown(cover_and_crop(mask, size), mirrored), 4).numpy()
    blocks = shown.reshape(size[1] // 4, 4, size[0] // 4, 4).mean(axis=(1, 3)) / 255
    assert weights.shape == blocks.shape and np.abs(weights - blocks).max() <= 1 / 255
    plain = mask_on_tokens(cover_and_crop(mask, size), 4).numpy()
    assert np.allclose(weights, plain[:, ::-1] if mirrored else plain, atol=1e-6)


def test_mirrored_latents_are_those_of_the_mirrored_picture(pair_world, tiny_folder):
    world = pair_world
    world.encode(mirrored=True)
    rows, samples = read_rows(world.encoded, ENCODED), read_rows(world.manifest, MANIFEST)
    assert [row["mirrored"] for row in rows] == [False] * 5 + [True] * 5
    pipeline = Flux2KleinPipeline.from_pretrained(tiny_folder)
    hashes = [row["latents_sha256"] for row in rows] + [one for row in rows for one in row["reference_latents_sha256s"]]
    hashes += [row["weight_sha256"] for row in rows if row["weight_sha256"]]
    tensors = read_tensors(world.store, hashes)

    def encoded_by_pipeline(pixels):
        image = pipeline.image_processor.preprocess(
            Image.fromarray(pixels), height=pixels.shape[0], width=pixels.shape[1]
        )
        with torch.no_grad():
            return pipeline._encode_vae_image(image, None)[0]

    for plain, mirrored, sample in zip(rows[:5], rows[5:], samples, strict=True):
        pixels = cover_and_crop(pixels_of(world, sample["image_sha256"]), (plain["width_px"], plain["height_px"]))
        found = tensors[mirrored["latents_sha256"]]
        assert torch.allclose(found, encoded_by_pipeline(pixels[:, ::-1].copy()), atol=1e-5)
        assert not torch.allclose(found, tensors[plain["latents_sha256"]].flip(-1), atol=1e-2), "no mirrored latents"
        for sha256, image_sha256 in zip(
            mirrored["reference_latents_sha256s"], sample["reference_sha256s"], strict=True
        ):
            reference = pixels_of(world, image_sha256)[:, ::-1].copy()
            assert torch.allclose(tensors[sha256], encoded_by_pipeline(reference), atol=1e-5)
        if plain["weight_sha256"]:
            weights = tensors[mirrored["weight_sha256"]]
            assert torch.equal(weights, tensors[plain["weight_sha256"]].flip(-1))
            assert weights[:, 0].max() == 0 and weights[:, -1].min() == 1, "the left half is now the right one"


def test_faces_are_mirrored_with_their_photo(photo_world):
    world = photo_world
    world.faces = [world.root / "faces.parquet"]
    points = [20.0, 25.0, 40.0, 26.0, 30.0, 35.0, 22.0, 45.0, 38.0, 46.0]
    (sha256,) = [row["sha256"] for row in read_rows(world.images) if row["id"] == "p0"]
    face = {"image_sha256": sha256, "box": [10.0, 12.0, 50.0, 60.0], "landmarks": points}
    write_table(world.faces[0], SAMPLE_FACES, [face])
    world.encode(mirrored=True)
    plain, mirrored = (row for row in read_rows(world.encoded) if row["landmarks"])
    assert (plain["mirrored"], mirrored["mirrored"]) == (False, True)
    left_eye, right_eye = plain["landmarks"][:2], plain["landmarks"][2:4]
    assert mirrored["landmarks"][:2] == pytest.approx([31 - right_eye[0], right_eye[1]])
    assert mirrored["landmarks"][2:4] == pytest.approx([31 - left_eye[0], left_eye[1]])
    assert mirrored["face_box"][0] == pytest.approx(32 - plain["face_box"][2])


def test_plain_items_are_shared_and_captions_that_say_sides_are_warned_of(photo_world, caplog):
    world = photo_world
    assert world.encode() == 2
    latents = world.store.computed["latents"]
    rows = read_rows(world.manifest)
    rows[1]["caption"] = "she looks to the Left"
    write_table(world.manifest, MANIFEST, rows)
    world.encode(mirrored=True)
    assert world.store.computed["latents"] == 2 * latents
    assert "1 of 5 captions say left or right" in caplog.text and "she looks to the Left" in caplog.text


def chosen_over(steps: int, **changes) -> Counter:
    training = TrainingSettings.model_validate({"buckets": BUCKETS, **BOTH, **changes})
    names = [
        name for step in range(steps) for batch in choose_views([["a", "b"], ["a"]], training, step) for name in batch
    ]
    return Counter(name.removeprefix(sample_of(name)) for name in names)


def test_views_are_drawn_at_the_configured_rates():
    found = chosen_over(400)
    assert set(found) == {"", "@32|mirrored", "@48", "@48|mirrored"}
    assert all(found[name] == pytest.approx(300, abs=60) for name in found)
    assert set(chosen_over(50, flip=1.0, resolutions_px=())) == {"@32|mirrored"}
    assert set(chosen_over(5, flip=0.0, resolutions_px=())) == {""}


def test_what_is_shown_hangs_on_seed_step_and_sample():
    training = TrainingSettings.model_validate({"buckets": BUCKETS, **BOTH})
    together = [choose_views([["a", "b"], ["c"]], training, step) for step in range(60)]
    alone = [choose_views([["c"], ["a", "b"]], training, step) for step in range(60)]
    assert [[one[1], one[0]] for one in alone] == together
    for (first, second), _ in together:
        assert ("@48" in first) == ("@48" in second), "one micro-batch, one resolution"
    assert together != [choose_views([["a", "b"], ["c"]], training, step + 1) for step in range(60)]
    other = training.model_copy(update={"seed": 1})
    assert together != [choose_views([["a", "b"], ["c"]], other, step) for step in range(60)]


def test_samples_of_a_micro_batch_share_their_sizes_at_every_resolution(photo_world):
    world = photo_world
    changes = {"resolutions_px": (64, 48), "batch_size": 4, "flip": 0.5}
    stage = world.train_stage(**changes)
    world.encode(buckets=stage.training.all_buckets, mirrored=True)
    rows = read_rows(world.encoded)
    assert len(rows) == 2 * 3 * 5
    data = load_samples(rows, stage.training, world.store, torch.device("cpu"))
    assert len(data.samples) == 5 and len(data.views) == 30
    plan = Plan(data.planned(), 4, 0)
    for step in range(20):
        for names in choose_views(plan.step_batches(step, 2), stage.training, step):
            batch = data.batch(names, [False] * len(names))
            assert batch.latents_BLC.shape[0] == len(names)


def test_a_killed_training_with_all_views_ends_with_the_same_bytes(pair_world, monkeypatch):
    world = pair_world
    changes = {**BOTH, "steps": 4, "save_every": 2, "batch_size": 2, "gradient_accumulation": 2}
    stage = world.train_stage(**changes)
    world.encode(buckets=stage.training.all_buckets, mirrored=True)
    assert train(world, "straight", **changes).computed == 4
    log = read_rows(world.root / "straight/log.parquet")
    ids = {row["sample_id"] for row in read_rows(world.manifest)}
    assert {one for row in log for one in row["samples"]} == ids, "the log names samples, not views"
    trainings = world.store.root / "trainings"
    trainings.rename(world.root / "gone")
    with monkeypatch.context() as patch:
        kill_at(patch, "likeness.training.loop.train_step", 4)
        with pytest.raises(Killed):
            train(world, "killed", **changes)
    assert train(world, "killed", **changes).computed == 2
    assert bytes_of(world.root / "killed") == bytes_of(world.root / "straight")
    plain = train(world, "plain", **{**changes, "flip": 0.0, "resolutions_px": ()})
    assert plain.computed == 4 and sha256_of_file(world.root / "plain/step-000004.safetensors") != sha256_of_file(
        world.root / "straight/step-000004.safetensors"
    )


def test_a_table_without_the_views_is_refused(photo_world):
    from likeness.errors import UserError

    photo_world.encode()
    with pytest.raises(UserError, match="lacks further views"):
        train(photo_world, flip=0.5)


def test_a_mirrored_face_is_no_other_photo():
    own = {name: torch.eye(3)[place] for place, name in enumerate(["a", "b", "a@32|mirrored"])}
    found = targets_of(own, "others")
    assert torch.equal(found["a"], own["b"]) and torch.equal(found["a@32|mirrored"], own["b"])
    assert torch.equal(found["b"], own["a"])


def test_resolutions_must_differ():
    with pytest.raises(ValueError, match="must differ"):
        TrainingSettings.model_validate({"buckets": BUCKETS, "resolutions_px": (32,)})
