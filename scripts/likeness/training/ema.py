"""A running average of the adapter with the published ramp of its decay.

The average of the two factors is not the average of their products, but along one training the difference is small
beside what averaging removes; weights far apart in training must be averaged as products instead.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch


def decay_at(step: int, largest: float) -> float:
    """Decay of the update that follows the `step`-th optimizer step: 0 at first, then min(largest, (1 + n) / (10 + n)).

    Must agree with diffusers `EMAModel.get_decay` without its warm-up, with n = step − 1.
    """
    return 0.0 if step <= 1 else min(largest, step / (9 + step))


class Ema:
    """The average of named weights, in float32, on their device."""

    def __init__(self, weights: Mapping[str, torch.Tensor], largest: float) -> None:
        self.largest = largest
        self.weights = {name: weight.detach().float().clone() for name, weight in weights.items()}

    @torch.no_grad()
    def update(self, weights: Mapping[str, torch.Tensor], step: int) -> None:
        """Move the average towards the weights of optimizer step `step`, counted from 1."""
        share = 1.0 - decay_at(step, self.largest)
        for name, average in self.weights.items():
            average.lerp_(weights[name].float(), share)
