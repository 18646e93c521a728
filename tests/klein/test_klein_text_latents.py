"""Embeddings, latents and ids against diffusers' own pipeline, which is the oracle throughout."""

from __future__ import annotations

import logging

import pytest
import torch
from diffusers import Flux2KleinPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.tiny import MAX_TEXT_TOKENS, tiny_pipeline

from likeness.klein import ids, latents
from likeness.klein.text import count_tokens, encode_prompts


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline(seed=3)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 256, (max(height // 4, 1), max(width // 4, 1), 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(noise.numpy()).resize((width, height), Image.Resampling.BILINEAR)


@torch.no_grad()
def test_embeddings_of_cut_encoder_equal_the_full_pipelines_bit_for_bit(tiny_base, pipeline):
    prompts = ["a photo of zqx person, smiling", "", "zqx"]
    ours_BTD = encode_prompts(tiny_base, prompts)
    theirs = [pipeline.encode_prompt([prompt], max_sequence_length=MAX_TEXT_TOKENS)[0] for prompt in prompts]
    assert len(tiny_base.text_encoder.layers) == 28 and not hasattr(tiny_base.text_encoder, "lm_head")
    assert ours_BTD.shape == (3, MAX_TEXT_TOKENS, 96)
    assert torch.equal(ours_BTD, torch.cat(theirs))
    assert (ours_BTD[0] - ours_BTD[2]).abs().max() > 0.1


@torch.no_grad()
def test_27_layers_would_be_wrong(pipeline):
    """The last state of a cut encoder is the normed one, so the cut must keep one layer more than is read."""
    encoder = pipeline.text_encoder.model
    inputs = torch.arange(8)[None]
    full = encoder(inputs, output_hidden_states=True).hidden_states[27]
    keep = encoder.layers
    encoder.config.num_hidden_layers, encoder.layers = 27, keep[:27]
    cut = encoder(inputs, output_hidden_states=True).hidden_states[27]
    encoder.config.num_hidden_layers, encoder.layers = len(keep), keep
    assert not torch.allclose(full, cut)


def test_embedding_does_not_depend_on_the_batch(tiny_base):
    together = encode_prompts(tiny_base, ["one", "two", "three"])
    assert torch.equal(together[1:2], encode_prompts(tiny_base, ["two"]))


def test_long_prompt_is_cut_with_a_warning_and_short_one_without(tiny_base, caplog):
    with caplog.at_level(logging.WARNING):
        encode_prompts(tiny_base, ["short"])
        assert not caplog.records
        embeddings_BTD = encode_prompts(tiny_base, ["word " * 200])
    assert embeddings_BTD.shape[1] == MAX_TEXT_TOKENS
    assert "prompt is cut" in caplog.text
    assert count_tokens(tiny_base, "word " * 200) > MAX_TEXT_TOKENS > count_tokens(tiny_base, "short")


@torch.no_grad()
def test_encoded_images_equal_the_pipelines(tiny_base, pipeline):
    images_BCHW = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ours = latents.encode_images(tiny_base.vae, images_BCHW)
    theirs = torch.cat([pipeline._encode_vae_image(image[None], None) for image in images_BCHW])
    assert ours.shape == (2, 16, 4, 6)
    assert torch.equal(ours, theirs)


@torch.no_grad()
def test_decoded_latents_equal_the_pipelines_decoder(tiny_base, pipeline):
    packed_BLC = torch.randn(1, 24, 16, generator=torch.Generator().manual_seed(1))
    grid_BCHW = latents.unpack(packed_BLC, 4, 6)
    with_ids = Flux2KleinPipeline._unpack_latents_with_ids(packed_BLC, ids.target_ids(4, 6)[None], 4, 6)
    assert torch.equal(grid_BCHW, with_ids)
    vae = pipeline.vae
    deviation = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps)
    raw = Flux2KleinPipeline._unpatchify_latents(with_ids * deviation + vae.bn.running_mean.view(1, -1, 1, 1))
    assert torch.allclose(latents.decode_latents(tiny_base.vae, grid_BCHW), vae.decode(raw).sample, atol=1e-6)


def test_images_of_odd_size_are_refused(tiny_base):
    with pytest.raises(ValueError, match="multiples of 4 px"):
        latents.encode_images(tiny_base.vae, torch.zeros(1, 3, 16, 18))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.integers(1, 7))
def test_patches_and_packing_equal_the_pipelines(batch, channels, height, width):
    raw = torch.arange(batch * channels * height * width * 4.0).reshape(batch, channels, 2 * height, 2 * width)
    patched = latents.patchify(raw)
    assert torch.equal(patched, Flux2KleinPipeline._patchify_latents(raw))
    assert torch.equal(latents.unpatchify(patched), raw)
    packed = latents.pack(patched)
    assert torch.equal(packed, Flux2KleinPipeline._pack_latents(patched))
    assert torch.equal(latents.unpack(packed, height, width), patched)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=4),
)
def test_position_ids_equal_the_pipelines(height, width, grids):
    theirs = Flux2KleinPipeline._prepare_latent_ids(torch.zeros(1, 4, height, width))[0]
    assert torch.equal(ids.target_ids(height, width), theirs)
    assert torch.equal(ids.text_ids(height), Flux2KleinPipeline._prepare_text_ids(torch.zeros(1, height, 3))[0])
    references = [torch.zeros(1, 4, *grid) for grid in grids]
    assert torch.equal(ids.reference_ids(grids), Flux2KleinPipeline._prepare_image_ids(references)[0])
    assert ids.reference_ids(grids)[:, 0].unique().tolist() == [10 * (i + 1) for i in range(len(grids))]


@pytest.mark.parametrize("size", [(64, 64), (67, 91), (1300, 1100), (2048, 333), (1024, 1024), (1025, 1024)])
def test_references_are_preprocessed_as_the_pipeline_does(size):
    image = picture(*size)
    from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor

    processor, step = Flux2ImageProcessor(vae_scale_factor=16), 16
    expected = processor._resize_if_exceeds_area(image, 1024 * 1024)
    width, height = expected.width // step * step, expected.height // step * step
    expected_BCHW = processor.preprocess(expected, height=height, width=width, resize_mode="crop")
    assert torch.equal(ids.preprocess_reference(image, step)[None], expected_BCHW)


def test_reference_cap_can_be_lower_and_tiny_ones_are_refused():
    assert ids.fit_reference(picture(400, 300), 16, max_pixels=10_000).size == (112, 80)
    assert ids.fit_reference(picture(40, 30), 16, max_pixels=10_000).size == (32, 16)
    with pytest.raises(ValueError, match="smaller than one token"):
        ids.fit_reference(picture(40, 15), 16)
