"""Merging LoRAs: the exact weighted sum, for LoRAs of any ranks and modules (task arithmetic).

A sum of changes of weight puts the factors side by side, so it is exact and its rank is the sum of the ranks; averaging
A with A and B with B is not a sum of changes. A lower rank is the best approximation of the exact sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from likeness.errors import UserError
from likeness.lora.adapter import Lora, LoraModule
from likeness.lora.factors import spectrum, weighted_sum, widest
from likeness.lora.operation import Operated, Operation, check_alike, united


@dataclass(frozen=True)
class MergeRule:
    """How LoRAs are merged; `rank` cuts the exact sum to its best approximation, None keeps the sum of the ranks."""

    rank: int | None = None

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise UserError(f"rank: {self.rank} is not allowed; a LoRA has a rank of 1 or more.")


def merge_loras(loras: Sequence[Lora], weights: Sequence[float], rule: MergeRule = MergeRule()) -> Operation:
    """Merge LoRAs by weights (any sign); a module that only some of them adapt counts as no change in the others.

    UserError for no LoRA, weights that do not match or are all zero, and LoRAs of different base models (when the
    module is made).
    """
    if not loras or len(loras) != len(weights):
        raise UserError(
            f"{len(loras)} LoRAs and {len(weights)} weights: give one weight to each LoRA, and a LoRA at all."
        )
    if not any(weights):
        raise UserError("all weights are 0: the merged LoRA would change nothing.")

    def operate(name: str) -> Operated:
        present = [
            (lora.modules[name], weight) for lora, weight in zip(loras, weights, strict=True) if name in lora.modules
        ]
        modules = [module for module, _ in present]
        check_alike(name, modules)
        return sum_modules(modules, [weight for _, weight in present], rule.rank)

    about = {"operation": "merge", "method": "sum", "weights": ",".join(f"{weight:g}" for weight in weights)}
    if rule.rank is not None:
        about["rank"] = str(rule.rank)
    return Operation(united(loras), operate, about)


def sum_modules(modules: Sequence[LoraModule], weights: Sequence[float], rank: int | None) -> Operated:
    """The weighted sum of changes, exact or cut to a rank, with the part of the energy that the cut keeps."""
    ranks = "+".join(str(module.rank) for module in modules)
    if rank is None or rank >= sum(module.rank for module in modules):
        merged = weighted_sum(modules, weights)
        return Operated(merged, {"rank_before": ranks, "rank_after": merged.rank, "retained_energy": 1.0})
    found = spectrum(weighted_sum(modules, weights, torch.float64))
    merged, dtype = found.truncated(rank), widest(modules)
    cut = LoraModule(merged.A_RI.to(dtype), merged.B_OR.to(dtype), merged.scale)
    return Operated(cut, {"rank_before": ranks, "rank_after": cut.rank, "retained_energy": found.retained(rank)})
