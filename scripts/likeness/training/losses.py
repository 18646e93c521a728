"""Loss terms: each a sum that is divided once by the number of samples of the optimizer step.

So a step's loss is the mean over its samples however it is split into micro-batches, and the logged loss is the
optimised one. Within a sample, weights are normalised by their sum: a small mask must not lower the learning rate.

Axes: B samples, L target tokens, C latent channels.
"""

from __future__ import annotations

import torch

Terms = dict[str, torch.Tensor]
Report = dict[str, float]


def token_weights(mask_BL: torch.Tensor, unmasked_weight: float) -> torch.Tensor:
    """Turn masks (share of each token inside, 0..1) into loss weights: 1 inside, `unmasked_weight` outside."""
    return unmasked_weight + (1.0 - unmasked_weight) * mask_BL


def velocity_loss(
    predicted_BLC: torch.Tensor, target_BLC: torch.Tensor, weights_BL: torch.Tensor, samples_of_step: int
) -> tuple[Terms, Report]:
    """Weighted squared error of the velocity: Σ w·(v̂ − v)² / (C · Σ w) for each sample, over `samples_of_step`.

    Computed in float32. Returns (terms, report): the terms are summed and optimised, the report is only watched.
    """
    error_BL = (predicted_BLC.float() - target_BLC.float()).square().mean(dim=-1)
    per_sample_B = (weights_BL * error_BL).sum(dim=1) / weights_BL.sum(dim=1)
    return {"velocity": per_sample_B.sum() / samples_of_step}, {}
