"""The sampler and the velocity against Flux2KleinPipeline itself, with and without references and guidance."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from hypothesis import given
from hypothesis import strategies as st
from tests.klein.test_klein_text_latents import picture
from tests.tiny import MAX_TEXT_TOKENS, tiny_pipeline, tiny_transformer

from likeness.klein import ids, latents
from likeness.klein.sample import empirical_mu, initial_noise, sample_images, sampling_sigmas, token_grid
from likeness.klein.text import encode_prompts
from likeness.klein.velocity import predict_velocity

PROMPTS = ["a photo of zqx", "a drawing of zqx"]
STEPS = 5


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline(seed=3)


def noise_for(prompts: list[str]) -> torch.Tensor:
    return torch.stack([initial_noise(7, prompt, (24, 16)) for prompt in prompts])


def from_pipeline(pipeline, prompts, scale, images=None):
    """What the pipeline samples, back in the normalised and packed form."""
    raw_BCHW = pipeline(
        image=images,
        prompt=prompts,
        height=16,
        width=24,
        num_inference_steps=STEPS,
        guidance_scale=scale,
        latents=latents.unpack(noise_for(prompts), 4, 6),
        max_sequence_length=MAX_TEXT_TOKENS,
        output_type="latent",
    ).images
    return latents.pack(latents.normalise(pipeline.vae, latents.patchify(raw_BCHW)))


def ours(base, prompts, scale, references=None, **more):
    negative = encode_prompts(base, [""])
    return sample_images(
        base,
        base.scheduler,
        encode_prompts(base, prompts),
        negative,
        noise_for(prompts),
        16,
        24,
        references,
        STEPS,
        scale,
        **more,
    )


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_samples_equal_the_pipelines(tiny_base, pipeline, scale):
    expected = from_pipeline(pipeline, PROMPTS, scale)
    found = ours(tiny_base, PROMPTS, scale)
    assert torch.allclose(found, expected, atol=1e-5), (found - expected).abs().max()
    assert (found - noise_for(PROMPTS)).abs().mean() > 0.1


def test_guidance_changes_the_samples(tiny_base):
    assert not torch.allclose(ours(tiny_base, PROMPTS, 1.0), ours(tiny_base, PROMPTS, 4.0), atol=1e-3)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_samples_with_two_references_equal_the_pipelines(tiny_base, pipeline, scale):
    images = [picture(20, 16, 1), picture(13, 30, 2)]
    expected = from_pipeline(pipeline, PROMPTS[:1], scale, images)
    encoded = [latents.encode_images(tiny_base.vae, ids.preprocess_reference(image, 4)[None])[0] for image in images]
    assert [tuple(one.shape) for one in encoded] == [(16, 4, 5), (16, 7, 3)]
    found = ours(tiny_base, PROMPTS[:1], scale, [encoded])
    assert torch.allclose(found, expected, atol=1e-5), (found - expected).abs().max()
    assert not torch.allclose(found, ours(tiny_base, PROMPTS[:1], scale), atol=1e-3)
    swapped = ours(tiny_base, PROMPTS[:1], scale, [encoded[::-1]])
    assert not torch.allclose(found, swapped, atol=1e-4)


def test_batch_with_references_of_three_sizes_equals_one_by_one(tiny_base):
    generator = torch.Generator().manual_seed(0)
    references = [
        [torch.randn(16, 2, 3, generator=generator)],
        [torch.randn(16, 2, 3, generator=generator), torch.randn(16, 4, 1, generator=generator)],
        [],
        [torch.randn(16, 2, 3, generator=generator)],
    ]
    prompts = ["one", "two", "three", "four"]
    together = ours(tiny_base, prompts, 2.0, references)
    for index, prompt in enumerate(prompts):
        alone = ours(tiny_base, [prompt], 2.0, [references[index]])
        assert torch.allclose(together[index], alone[0], atol=1e-5), index


def test_distilled_checkpoint_is_sampled_without_guidance(tiny_base, monkeypatch):
    plain = ours(tiny_base, PROMPTS, 1.0)
    monkeypatch.setitem(tiny_base.__dict__, "is_distilled", True)
    assert torch.equal(ours(tiny_base, PROMPTS, 4.0), plain)


def test_hooks_see_every_step_and_the_scheduler_is_left_alone(tiny_base):
    started, ended = [], []
    before = copy.deepcopy(tiny_base.scheduler.sigmas)
    result = ours(
        tiny_base,
        PROMPTS,
        1.0,
        on_step_start=lambda index, sigma: started.append((index, sigma)),
        on_step_end=lambda index, sigma, latents_BLC: ended.append((index, sigma, latents_BLC.clone())),
    )
    assert [index for index, _ in started] == list(range(STEPS)) == [index for index, _, _ in ended]
    assert started[0][1] == 1.0 and ended[-1][1] == 0.0
    assert [sigma for _, sigma in started[1:]] == [sigma for _, sigma, _ in ended[:-1]]
    assert torch.equal(ended[-1][2], result)
    assert torch.equal(tiny_base.scheduler.sigmas, before)


def test_guidance_without_negative_embeddings_is_refused(tiny_base):
    embeddings_BTD = encode_prompts(tiny_base, PROMPTS)
    with pytest.raises(ValueError, match="negative embeddings"):
        sample_images(tiny_base, tiny_base.scheduler, embeddings_BTD, None, noise_for(PROMPTS), 16, 24)


def test_noise_that_does_not_fit_the_size_is_refused():
    assert token_grid(16, 24, 24) == (4, 6)
    assert token_grid(1024, 768, 64 * 48) == (64, 48)
    for height, width, length in ((16, 24, 25), (16, 22, 24), (1024, 1024, 3)):
        with pytest.raises(ValueError, match="do not cover"):
            token_grid(height, width, length)


def test_shift_at_one_megapixel_is_the_documented_one(tiny_base):
    """At 4096 tokens and 50 steps mu is 2.02; the second of 50 sigmas follows from e^mu / (e^mu + 1/t - 1)."""
    timesteps = sampling_sigmas(copy.deepcopy(tiny_base.scheduler), 4096, 50)
    shift = torch.tensor(2.02).exp()
    assert timesteps[1].item() / 1000 == pytest.approx((shift / (shift + 1 / 0.98 - 1)).item(), abs=1e-4)


def test_noise_is_a_pure_function_of_seed_prompt_and_shape():
    noise = initial_noise(1, "neutral/7", (4096, 128))
    torch.manual_seed(99)
    assert torch.equal(noise, initial_noise(1, "neutral/7", (4096, 128)))
    assert noise.dtype == torch.float32
    assert abs(noise.mean().item()) < 0.01 and abs(noise.std().item() - 1) < 0.01
    for other in (initial_noise(2, "neutral/7", (4096, 128)), initial_noise(1, "neutral/8", (4096, 128))):
        assert abs((noise * other).mean().item()) < 0.01


def test_noise_has_not_moved():
    """Pinned values: stored images are keyed by the seed, so the noise of a seed must never change."""
    found = initial_noise(42, "portrait", (4,)).tolist()
    assert found == pytest.approx([-0.0164972, 0.3197294, 0.804944, 0.8488763], abs=1e-6)


@torch.no_grad()
def test_velocity_returns_target_tokens_only_and_reads_references():
    transformer = tiny_transformer(1)
    generator = torch.Generator().manual_seed(2)
    noisy_BLC = torch.randn(2, 6, 16, generator=generator)
    embeddings_BTD = torch.randn(2, 5, 96, generator=generator)
    reference_BRC = torch.randn(2, 4, 16, generator=generator)
    sigma_B = torch.tensor([0.3, 0.8])
    common = (transformer, noisy_BLC, sigma_B, embeddings_BTD, ids.target_ids(2, 3), ids.text_ids(5))
    plain = predict_velocity(*common)
    full = predict_velocity(*common, reference_BRC, ids.reference_ids([(2, 2)]))
    oracle = transformer(
        hidden_states=torch.cat([noisy_BLC, reference_BRC], 1),
        encoder_hidden_states=embeddings_BTD,
        timestep=sigma_B,
        img_ids=torch.cat([ids.target_ids(2, 3), ids.reference_ids([(2, 2)])]),
        txt_ids=ids.text_ids(5),
    ).sample[:, :6]
    assert plain.shape == full.shape == (2, 6, 16)
    assert torch.equal(full, oracle)
    assert not torch.allclose(plain, full, atol=1e-3)
    assert torch.allclose(
        plain[1:], predict_velocity(*[x[1:] if i in (1, 2, 3) else x for i, x in enumerate(common)]), atol=1e-5
    )


@given(length=st.integers(1, 20_000), steps=st.integers(1, 250))
def test_the_shift_is_that_of_diffusers(length: int, steps: int) -> None:
    assert empirical_mu(length, steps) == pytest.approx(compute_empirical_mu(length, steps), rel=1e-12, abs=1e-12)
