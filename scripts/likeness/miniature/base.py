"""The miniature's base model: a real Flux2KleinPipeline of under a million parameters, trained from scratch by a rule.

It learns to draw any person of the drawn world from a caption of the project's grammar, mostly close portraits. A part
of its batches carries a reference picture as extra tokens: the same person in the same scene with another expression. So
it keeps what a reference shows, its background among it, as a large model does, and an edit is left to be taught. The
number of steps is fixed and everything runs on one thread, so that the same
seed gives the same bytes.

Axes: B batch, C channels, H height, W width, L tokens, T text tokens, D embedding width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2
from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel
from diffusers.pipelines.flux2.pipeline_flux2_klein import Flux2KleinPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch.nn import functional

from likeness.captions.facts import Facts, compose_caption
from likeness.klein.ids import reference_ids, target_ids, text_ids
from likeness.klein.latents import normalise, pack, patchify
from likeness.klein.velocity import predict_velocity
from likeness.miniature.scenes import Scene, facts_of, sample_identities, sample_scenes
from likeness.miniature.text import HIDDEN_SIZE, TEXT_TOKENS, build_text_encoder, build_tokenizer
from likeness.miniature.vae import LATENT_CHANNELS, TOKEN_PX, build_vae, set_latent_statistics
from likeness.miniature.world import render

NATIVE_PX = 16
SUBJECT = "a person"
HEAD_SIZE = 32
VERSION = 1
"""Raised when a base built by the rule would differ."""


@dataclass(frozen=True)
class BaseSettings:
    """How the base is made; shares are 0..1."""

    steps: int = 400
    batch_size: int = 16
    matrix_learning_rate: float = 0.02
    learning_rate: float = 3e-3
    warmup_steps: int = 30
    heads: int = 2
    double_blocks: int = 1
    single_blocks: int = 3
    reference_share: float = 0.3
    half_body_share: float = 0.15
    full_body_share: float = 0.03
    empty_caption_share: float = 0.1
    clause_dropout: float = 0.15


@dataclass(frozen=True)
class Batch:
    """Pictures in -1..1 (B, 3, H, W), their captions, and other pictures of the same people or None."""

    images_BCHW: torch.Tensor
    captions: list[str]
    references_BCHW: torch.Tensor | None


def build_base(folder: Path, seed: int, settings: BaseSettings | None = None) -> dict[str, Any]:
    """Train the base and save it as a diffusers folder; returns steps, parameters, first_loss and last_loss.

    The losses are means over a tenth of the steps. One thread, whatever the caller set; the global random state is kept.
    """
    settings = settings or BaseSettings()
    with _one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = _untrained(seed, settings)
        losses = _train(pipeline, np.random.default_rng(seed), torch.Generator().manual_seed(seed), settings)
        pipeline.save_pretrained(folder, safe_serialization=True)
    tenth = max(1, len(losses) // 10)
    return {
        "steps": settings.steps,
        "parameters": sum(parameter.numel() for parameter in pipeline.transformer.parameters()),
        "first_loss": float(np.mean(losses[:tenth])),
        "last_loss": float(np.mean(losses[-tenth:])),
    }


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _untrained(seed: int, settings: BaseSettings) -> Flux2KleinPipeline:
    vae = build_vae()
    rng = np.random.default_rng(seed)
    set_latent_statistics(
        vae, as_tensor(render(sample_identities(256, rng), sample_scenes(256, rng), NATIVE_PX, NATIVE_PX).images_NHWC)
    )
    transformer = Flux2Transformer2DModel(
        in_channels=LATENT_CHANNELS * TOKEN_PX**2,
        num_layers=settings.double_blocks,
        num_single_layers=settings.single_blocks,
        attention_head_dim=HEAD_SIZE,
        num_attention_heads=settings.heads,
        joint_attention_dim=3 * HIDDEN_SIZE,
        timestep_guidance_channels=64,
        mlp_ratio=3.0,
        axes_dims_rope=(HEAD_SIZE // 4,) * 4,
        guidance_embeds=False,
    )
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=vae,
        text_encoder=build_text_encoder(seed),
        tokenizer=build_tokenizer(),
        transformer=transformer,
        is_distilled=False,
    )


def as_tensor(images_NHWC: np.ndarray) -> torch.Tensor:
    """Turn drawn pictures (N, H, W, 3), 0..1, into images_BCHW in -1..1."""
    return torch.from_numpy(images_NHWC * 2 - 1).permute(0, 3, 1, 2).contiguous()


@torch.no_grad()
def _embed(pipeline: Flux2KleinPipeline, captions: list[str], known: dict[str, torch.Tensor]) -> torch.Tensor:
    """Embed captions to (B, T, D), each one once: those not yet in `known` are added to it."""
    new = sorted(set(captions) - known.keys())
    if new:
        embedded_BTD = Flux2KleinPipeline._get_qwen3_prompt_embeds(
            pipeline.text_encoder, pipeline.tokenizer, new, max_sequence_length=TEXT_TOKENS
        )
        known.update(zip(new, embedded_BTD, strict=True))
    return torch.stack([known[caption] for caption in captions])


def draw_batch(rng: np.random.Generator, settings: BaseSettings) -> Batch:
    """Draw one training batch: strangers in captioned scenes, sometimes with a reference that differs by the expression."""
    n = settings.batch_size
    identities, scenes = sample_identities(n, rng), _mixed_scenes(n, rng, settings)
    captions = [_worn_caption(facts_of(scenes, i), rng, settings) for i in range(n)]
    references = None
    if rng.uniform() < settings.reference_share:
        other = render(identities, _before(scenes, rng), NATIVE_PX, NATIVE_PX)
        references = as_tensor(other.images_NHWC)
    return Batch(as_tensor(render(identities, scenes, NATIVE_PX, NATIVE_PX).images_NHWC), captions, references)


def _mixed_scenes(n: int, rng: np.random.Generator, settings: BaseSettings) -> Scene:
    close, half, full = (sample_scenes(n, rng, framing) for framing in ("close", "half", "full"))
    draw = rng.uniform(size=n)
    is_full = draw < settings.full_body_share
    is_half = ~is_full & (draw < settings.full_body_share + settings.half_body_share)
    body = {name: np.where(is_full, getattr(full, name), getattr(half, name)) for name in ("scale", "centre_y")}
    mixed = {name: np.where(is_full | is_half, body[name], getattr(close, name)) for name in body}
    return close.change(**mixed)


def _before(scenes: Scene, rng: np.random.Generator) -> Scene:
    """Return the scenes as references show them: all the same but the expression."""
    return scenes.change(smile=sample_scenes(len(scenes), rng).smile)


def _worn_caption(facts: Facts, rng: np.random.Generator, settings: BaseSettings) -> str:
    """Write the caption with clauses dropped at random, so that every shorter sentence of the grammar is known too."""
    if rng.uniform() < settings.empty_caption_share:
        return ""
    names = ("framing", "pose", "light", "background")
    dropped = {name: None for name in names if rng.uniform() < settings.clause_dropout}
    return compose_caption(SUBJECT, replace(facts, **dropped))


def _train(
    pipeline: Flux2KleinPipeline, rng: np.random.Generator, generator: torch.Generator, settings: BaseSettings
) -> list[float]:
    known: dict[str, torch.Tensor] = {}
    transformer = pipeline.transformer.train()
    optimizers = _optimizers(transformer, settings)
    losses = []
    for step in range(settings.steps):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * rate_factor(step, settings)
        batch = draw_batch(rng, settings)
        loss = flow_loss(transformer, pipeline.vae, batch, _embed(pipeline, batch.captions, known), generator)
        transformer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(transformer.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
    transformer.eval()
    return losses


def _optimizers(transformer: torch.nn.Module, settings: BaseSettings) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, which halves the steps needed, and AdamW for all the rest."""
    inside = {
        name: parameter
        for name, parameter in transformer.named_parameters()
        if "blocks." in name and parameter.ndim == 2
    }
    rest = [parameter for name, parameter in transformer.named_parameters() if name not in inside]
    matrices = torch.optim.Muon(list(inside.values()), lr=settings.matrix_learning_rate, weight_decay=0.01)
    others = torch.optim.AdamW(rest, lr=settings.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    for optimizer in (matrices, others):
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return [matrices, others]


def rate_factor(step: int, settings: BaseSettings) -> float:
    """Return the share of the full learning rate at a step: a linear warm-up, then half a cosine down to a hundredth."""
    warm = min(1.0, (step + 1) / settings.warmup_steps)
    fall = 0.5 * (1 + math.cos(math.pi * step / settings.steps))
    return warm * (0.01 + 0.99 * fall)


def encode(vae: AutoencoderKLFlux2, images_BCHW: torch.Tensor) -> torch.Tensor:
    """Encode a whole batch at once to normalised latents_BCHW, one token a pixel of H×W."""
    with torch.no_grad():
        return normalise(vae, patchify(vae.encode(images_BCHW).latent_dist.mode()))  # pyright: ignore[reportAttributeAccessIssue]


def flow_loss(
    transformer: torch.nn.Module,
    vae: AutoencoderKLFlux2,
    batch: Batch,
    embeddings_BTD: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    """Return the mean squared error of the predicted velocity (noise minus latents) on the target's tokens."""
    latents_BCHW = encode(vae, batch.images_BCHW)
    latents_BLC, grid = pack(latents_BCHW), (latents_BCHW.shape[2], latents_BCHW.shape[3])
    noise_BLC = torch.randn(latents_BLC.shape, generator=generator)
    # A logit-normal leaning to high noise, where layout and colours are decided.
    sigma_B = torch.sigmoid(1.2 * torch.randn(len(latents_BLC), generator=generator) + 0.3)
    noisy_BLC = torch.lerp(latents_BLC, noise_BLC, sigma_B[:, None, None])
    references = None if batch.references_BCHW is None else pack(encode(vae, batch.references_BCHW))
    velocity_BLC = predict_velocity(
        transformer,
        noisy_BLC,
        sigma_B,
        embeddings_BTD,
        target_ids(*grid),
        text_ids(embeddings_BTD.shape[1]),
        references,
        None if references is None else reference_ids([grid]),
    )
    return functional.mse_loss(velocity_BLC, noise_BLC - latents_BLC)
