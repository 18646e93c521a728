"""Averages of checkpoints: of their changes of weight, never of A with A and B with B.

The mean of products is not the product of means: for checkpoints that lie apart, averaging factors gives a change of
another size and direction. Weights of a post-hoc exponential moving average make the average that an EMA would have
kept over the given checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from likeness.errors import UserError
from likeness.lora.adapter import Lora
from likeness.lora.merge import MergeRule, merge_loras
from likeness.lora.operation import Operation


def average_loras(loras: Sequence[Lora], weights: Sequence[float] | None = None, rank: int | None = None) -> Operation:
    """The weighted mean of the changes of several LoRAs, of equal weights where none are given.

    Exact, with the sum of the ranks, unless cut to a rank. Weights must sum to 1; UserError otherwise.
    """
    if not loras:
        raise UserError("give at least one LoRA to average.")
    weights = [1 / len(loras)] * len(loras) if weights is None else weights
    if abs(sum(weights) - 1) > 1e-9:
        raise UserError(f"the weights of an average sum to {sum(weights):g}; they must sum to 1.")
    merged = merge_loras(loras, weights, MergeRule(rank=rank))
    return replace(merged, about={**merged.about, "operation": "average"})


def ema_weights(count: int, decay: float) -> list[float]:
    """Weights of `count` checkpoints, oldest first, in an exponential moving average that begins at the oldest.

    The recursion average ← decay · average + (1 − decay) · checkpoint, unrolled; they sum to 1. decay is 0 (the last
    checkpoint alone) to below 1 (at 1 it would be the oldest alone); UserError otherwise.
    """
    if not 0 <= decay < 1:
        raise UserError(f"ema: {decay:g} is not allowed; a decay is 0 up to below 1, for example 0.8.")
    remembered = [decay ** (count - 1 - index) for index in range(count)]
    return [part if index == 0 else (1 - decay) * part for index, part in enumerate(remembered)]
