"""The velocity's squared error: weighed by mask and face within a sample, and by noise level between samples.

Within a sample, weights are divided by their sum: a small mask must not lower the learning rate. Between samples, the
weighting σ² makes the loss the squared error of the predicted image, since x̂0 − x0 = −σ·(v̂ − v).

Axes: B samples, L target tokens, C latent channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from likeness.training.losses.objective import Seen

BELL_FOOT = math.exp(-0.5)
BELL_MEAN = math.sqrt(math.pi / 2) * math.erf(math.sqrt(0.5)) - BELL_FOOT
"""Mean over 0..1 of exp(−2·(σ − ½)²) − exp(−½)."""


@dataclass(frozen=True)
class VelocityLoss:
    """Weighted squared error of the velocity, Σ w·(v̂ − v)² / (C · Σ w), times the weighting of the noise level."""

    weighting: str

    def __call__(self, seen: Seen) -> torch.Tensor:
        error_B = weighted_error(seen.predicted_BLC, seen.target_BLC, seen.batch.weights_BL)
        return error_B * sigma_weights(seen.sigma_B, self.weighting)


def weighted_error(predicted_BLC: torch.Tensor, target_BLC: torch.Tensor, weights_BL: torch.Tensor) -> torch.Tensor:
    """Squared error of each sample, averaged over channels and, by weight, over tokens; at least in float32."""
    dtype = torch.promote_types(predicted_BLC.dtype, torch.float32)
    error_BL = (predicted_BLC.to(dtype) - target_BLC.to(dtype)).square().mean(dim=-1)
    return (weights_BL * error_BL).sum(dim=1) / weights_BL.sum(dim=1)


def sigma_weights(sigma_B: torch.Tensor, weighting: str) -> torch.Tensor:
    """The factor of each noise level: 1, σ², or a bell around one half with mean 1 that ends at 0 (DiffSynth-Studio)."""
    if weighting == "sigma2":
        return sigma_B.square()
    if weighting == "bell":
        return (torch.exp(-2.0 * (sigma_B - 0.5).square()) - BELL_FOOT) / BELL_MEAN
    return torch.ones_like(sigma_B)
