"""The sampler: from noise to latents, in batches, with several references a sample.

Must agree with diffusers Flux2KleinPipeline to rounding: the same scheduler class, the shift that its resolution and
step count imply, true classifier-free guidance for base checkpoints and none for distilled ones. Unlike the pipeline it
takes cached embeddings and latents, different references for each sample of a batch, and noise that hangs on the
prompt and seed alone.

Axes: B samples, L target tokens, R reference tokens, T text tokens, C latent channels, D embedding width, H and W
tokens of a reference's grid.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from likeness.klein.ids import reference_ids, target_ids, text_ids
from likeness.klein.latents import pack
from likeness.klein.load import BaseModel
from likeness.klein.velocity import predict_velocity

if TYPE_CHECKING:
    from likeness.klein.libraries import FlowMatchEulerDiscreteScheduler

References = Sequence[Sequence[torch.Tensor]]
"""For each sample, the latents_CHW of its references in order."""

StepStart = Callable[[int, float], None]
"""Called with (step index, sigma) before each step, for instance to change an adapter's scale."""

StepEnd = Callable[[int, float, torch.Tensor], None]
"""Called with (step index, the sigma that was reached, latents_BLC) after each step."""


def initial_noise(seed: int, prompt_key: str, shape: Sequence[int]) -> torch.Tensor:
    """Draw the starting noise of one image: standard normal, float32, a pure function of its arguments.

    numpy's counter-based generator is used because torch's differs between processors and devices.
    """
    digest = hashlib.sha256(f"{seed}\n{prompt_key}".encode()).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    return torch.from_numpy(generator.standard_normal(tuple(shape), dtype=np.float32))


def sample_images(
    model: BaseModel | nn.Module,
    scheduler: FlowMatchEulerDiscreteScheduler,
    embeddings_BTD: torch.Tensor,
    negative_embeddings: torch.Tensor | None,
    noise_BLC: torch.Tensor,
    height: int,
    width: int,
    references: References | None = None,
    num_inference_steps: int = 20,
    guidance_scale: float = 4.0,
    on_step_start: StepStart | None = None,
    on_step_end: StepEnd | None = None,
) -> torch.Tensor:
    """Sample latents_BLC (normalised, as `encode_images` and `pack` make them) for pictures of height × width pixels.

    `negative_embeddings` is (1 or B, T, D), the embedding of ""; guidance is off at a scale of 1 or below and for a
    distilled BaseModel. `references` holds one list of latents_CHW a sample; samples whose references differ in size
    run one group after the other, and then the hooks are called for each group. Raises ValueError where guidance
    lacks its negative embeddings, or where the noise does not fit the size.
    """
    is_base = isinstance(model, BaseModel)
    guided = guidance_scale > 1 and not (is_base and model.is_distilled)
    if guided and negative_embeddings is None:
        raise ValueError(f"guidance_scale {guidance_scale} needs the negative embeddings (those of an empty prompt)")
    transformer = model.transformer if is_base else model
    negative_BTD = negative_embeddings.expand_as(embeddings_BTD) if guided and negative_embeddings is not None else None
    grid = token_grid(height, width, noise_BLC.shape[1])
    result_BLC = torch.empty_like(noise_BLC, dtype=embeddings_BTD.dtype, device=embeddings_BTD.device)
    for members in _groups_of_equal_references(references, noise_BLC.shape[0]):
        result_BLC[members] = _sample_group(
            transformer,
            copy.deepcopy(scheduler),
            embeddings_BTD[members],
            None if negative_BTD is None else negative_BTD[members],
            noise_BLC[members],
            grid,
            [references[index] for index in members] if references else [],
            num_inference_steps,
            guidance_scale,
            on_step_start,
            on_step_end,
        )
    return result_BLC


def token_grid(height: int, width: int, length: int) -> tuple[int, int]:
    """Find the grid (height, width in tokens) that covers height × width pixels with `length` square tokens."""
    token_px = round((height * width / length) ** 0.5)
    if not token_px or height % token_px or width % token_px or height * width != length * token_px**2:
        raise ValueError(
            f"{length} tokens of noise do not cover a picture of {height}×{width} px with whole square tokens"
        )
    return height // token_px, width // token_px


def sampling_sigmas(
    scheduler: FlowMatchEulerDiscreteScheduler,
    length: int,
    num_inference_steps: int,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Set a scheduler up for `length` target tokens and return its timesteps (noise levels times 1000)."""
    sigmas = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
    own_sigmas = getattr(scheduler.config, "use_flow_sigmas", False)
    scheduler.set_timesteps(
        num_inference_steps if own_sigmas else None,
        device=device,
        sigmas=None if own_sigmas else sigmas,  # pyright: ignore[reportArgumentType]
        mu=empirical_mu(length, num_inference_steps),
    )
    scheduler.set_begin_index(0)
    return torch.as_tensor(scheduler.timesteps)


def empirical_mu(length: int, num_inference_steps: int) -> float:
    """Find the logarithm of the time shift for `length` target tokens.

    The makers of FLUX.2 fitted one line over the length for 10 steps and one for 200; other numbers of steps lie
    between them, and pictures of more than 4,300 tokens take the second whatever the steps. Must agree with diffusers'
    compute_empirical_mu, whose module brings the whole pipeline with it.
    """
    at_200_steps = 0.00016927 * length + 0.45666666
    if length > 4300:
        return at_200_steps
    at_10_steps = 8.73809524e-05 * length + 1.89833333
    per_step = (at_200_steps - at_10_steps) / 190.0
    return per_step * num_inference_steps + (at_200_steps - 200.0 * per_step)


@torch.no_grad()
def _sample_group(
    transformer: nn.Module,
    scheduler: FlowMatchEulerDiscreteScheduler,
    embeddings_BTD: torch.Tensor,
    negative_BTD: torch.Tensor | None,
    noise_BLC: torch.Tensor,
    grid: tuple[int, int],
    references: References,
    num_inference_steps: int,
    guidance_scale: float,
    on_step_start: StepStart | None,
    on_step_end: StepEnd | None,
) -> torch.Tensor:
    latents_BLC = noise_BLC.to(embeddings_BTD)
    positions = (target_ids(*grid), text_ids(embeddings_BTD.shape[1]))
    reference_BRC, reference_positions = pack_references(references, latents_BLC)
    timesteps = sampling_sigmas(scheduler, latents_BLC.shape[1], num_inference_steps, latents_BLC.device)
    sigmas = torch.as_tensor(scheduler.sigmas).tolist()
    for index, timestep in enumerate(timesteps):
        if on_step_start:
            on_step_start(index, sigmas[index])
        # The pipeline casts the timestep before it divides; in bfloat16 the order shows.
        sigma_B = timestep.expand(latents_BLC.shape[0]).to(latents_BLC.dtype) / 1000

        def velocity(of_BTD: torch.Tensor, noisy_BLC: torch.Tensor = latents_BLC, sigma_B: torch.Tensor = sigma_B):
            return predict_velocity(
                transformer, noisy_BLC, sigma_B, of_BTD, *positions, reference_BRC, reference_positions
            )

        velocity_BLC = velocity(embeddings_BTD)
        if negative_BTD is not None:
            negative_BLC = velocity(negative_BTD)
            velocity_BLC = negative_BLC + guidance_scale * (velocity_BLC - negative_BLC)
        latents_BLC = scheduler.step(velocity_BLC, timestep, latents_BLC, return_dict=False)[0]  # pyright: ignore
        if on_step_end:
            on_step_end(index, sigmas[index + 1], latents_BLC)
    return latents_BLC


def pack_references(references: References, like: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Join each sample's references (equal grids over the batch) to reference_BRC and make their ids (R, 4)."""
    if not references or not references[0]:
        return None, None
    sequences = [torch.cat([pack(latents_CHW[None]) for latents_CHW in one], dim=1) for one in references]
    grids = [(latents_CHW.shape[1], latents_CHW.shape[2]) for latents_CHW in references[0]]
    return torch.cat(sequences).to(like), reference_ids(grids)


def _groups_of_equal_references(references: References | None, batch: int) -> list[list[int]]:
    """Indices of the samples that can share one batch: the model applies one sample's ids to the whole batch."""
    if references is None:
        return [list(range(batch))]
    if len(references) != batch:
        raise ValueError(f"references are given for {len(references)} samples, but there are {batch}")
    groups: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for index, one in enumerate(references):
        groups.setdefault(tuple(tuple(latents_CHW.shape) for latents_CHW in one), []).append(index)
    return list(groups.values())
