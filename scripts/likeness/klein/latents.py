"""Images to latents and back: VAE, 2×2 patches, batch normalisation, and the flat token sequence.

Must agree with diffusers pipeline_flux2_klein.py (`_encode_vae_image`, `_patchify_latents`, `_pack_latents`): the mode
of the VAE's distribution is taken, never a sample, patches come before the normalisation, and there is no other scale.

Axes: B batch, C channels, H height, W width (of pixels for images, of tokens for latents), L tokens in row order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from likeness.klein.family import token_px

if TYPE_CHECKING:
    from likeness.klein.libraries import AutoencoderKLFlux2


@torch.no_grad()
def encode_images(vae: AutoencoderKLFlux2, images_BCHW: torch.Tensor) -> torch.Tensor:
    """Encode images (values -1..1, sides multiples of `token_px`) to normalised latents_BCHW, one token a pixel of H×W.

    Images go through the VAE one at a time, so that a latent depends on its image and not on its batch.
    """
    _check_sides(vae, images_BCHW)
    latents = []
    for image_CHW in images_BCHW.to(device=vae.device, dtype=vae.dtype):
        distribution = vae.encode(image_CHW[None]).latent_dist  # pyright: ignore[reportAttributeAccessIssue]
        latents.append(normalise(vae, patchify(distribution.mode())))
    return torch.cat(latents)


@torch.no_grad()
def decode_latents(vae: AutoencoderKLFlux2, latents_BCHW: torch.Tensor) -> torch.Tensor:
    """Decode normalised latents to images_BCHW; values are about -1..1 and not clamped."""
    images = []
    for latents_CHW in latents_BCHW.to(device=vae.device, dtype=vae.dtype):
        raw_BCHW = unpatchify(denormalise(vae, latents_CHW[None]))
        images.append(vae.decode(raw_BCHW, return_dict=False)[0])  # pyright: ignore[reportArgumentType]
    return torch.cat(images)


def patchify(latents_BCHW: torch.Tensor) -> torch.Tensor:
    """Fold each 2×2 patch into the channels: (B, C, 2H, 2W) → (B, 4C, H, W), channel order (c, row, column)."""
    return torch.nn.functional.pixel_unshuffle(latents_BCHW, 2)


def unpatchify(latents_BCHW: torch.Tensor) -> torch.Tensor:
    """Undo `patchify`."""
    return torch.nn.functional.pixel_shuffle(latents_BCHW, 2)


def normalise(vae: AutoencoderKLFlux2, latents_BCHW: torch.Tensor) -> torch.Tensor:
    """Subtract the running mean and divide by the running deviation of the VAE's batch normalisation."""
    mean, deviation = _batch_norm(vae, latents_BCHW)
    return (latents_BCHW - mean) / deviation


def denormalise(vae: AutoencoderKLFlux2, latents_BCHW: torch.Tensor) -> torch.Tensor:
    """Undo `normalise`."""
    mean, deviation = _batch_norm(vae, latents_BCHW)
    return latents_BCHW * deviation + mean


def pack(latents_BCHW: torch.Tensor) -> torch.Tensor:
    """Flatten the grid to tokens in row order: (B, C, H, W) → (B, L, C)."""
    return latents_BCHW.flatten(2).transpose(1, 2)


def unpack(latents_BLC: torch.Tensor, height_tokens: int, width_tokens: int) -> torch.Tensor:
    """Undo `pack`: (B, L, C) → (B, C, H, W) with L = H·W."""
    batch, length, channels = latents_BLC.shape
    assert length == height_tokens * width_tokens, (length, height_tokens, width_tokens)
    return latents_BLC.transpose(1, 2).reshape(batch, channels, height_tokens, width_tokens)


def _batch_norm(vae: AutoencoderKLFlux2, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mean, variance = vae.bn.running_mean, vae.bn.running_var
    assert mean is not None and variance is not None
    # The square root is taken in the buffer's own type, before the cast, as the pipeline does.
    deviation = torch.sqrt(variance.view(1, -1, 1, 1) + vae.config["batch_norm_eps"])
    return mean.view(1, -1, 1, 1).to(like.device, like.dtype), deviation.to(like.device, like.dtype)


def _check_sides(vae: AutoencoderKLFlux2, images_BCHW: torch.Tensor) -> None:
    step = token_px(dict(vae.config))
    height_px, width_px = images_BCHW.shape[-2:]
    if images_BCHW.ndim != 4 or height_px % step or width_px % step:
        raise ValueError(
            f"images must be (B, 3, H, W) with sides that are multiples of {step} px, not {tuple(images_BCHW.shape)}"
        )
