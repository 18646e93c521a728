"""Merging LoRAs: the exact weighted sum (task arithmetic), and TIES, DARE and magnitude pruning on changes of weight.

LoRAs may have different ranks and adapt different modules; one that does not adapt a module changes nothing there. A sum
puts the factors side by side, so it is exact and its rank is the sum of the ranks; averaging A with A and B with B is
not a sum of changes. The other methods build each module's changes in full (one module at a time), and their result is
brought to a low rank, with the part of its energy that is kept in the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from likeness.errors import UserError
from likeness.lora.adapter import Lora, LoraModule
from likeness.lora.dense import Convention, drop_at_random, generator_for, keep_largest, low_rank, merge_by_signs
from likeness.lora.factors import spectrum, weighted_sum, widest
from likeness.lora.operation import Operated, Operation, check_alike, united

Method = Literal["sum", "ties", "dare", "magnitude"]


@dataclass(frozen=True)
class MergeRule:
    """How LoRAs are merged.

    rank: sum: cut the exact sum to its best approximation, None keeps it exact; other methods: rank of the result, None
    takes the sum of the ranks. density: part of the elements that TIES, DARE and magnitude pruning keep, above 0 up to
    1. convention: whose TIES, as the two differ for weights that differ. seed: of DARE's draws, one stream a module.
    UserError for what is missing, out of range, or not used by the method.
    """

    method: Method = "sum"
    rank: int | None = None
    density: float | None = None
    convention: Convention | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise UserError(f"rank: {self.rank} is not allowed; a LoRA has a rank of 1 or more.")
        if (self.density is None) != (self.method == "sum"):
            need = "takes no density" if self.method == "sum" else "needs a density: the part of the elements to keep"
            raise UserError(f"method {self.method} {need}.")
        if self.density is not None and not 0 < self.density <= 1:
            raise UserError(f"density: {self.density:g} is not allowed; it is the part to keep, above 0 up to 1.")
        if (self.convention is None) != (self.method != "ties"):
            need = "needs a convention, peft or mergekit: they elect signs and divide differently"
            raise UserError(f"method {self.method} {need if self.method == 'ties' else 'takes no convention'}.")

    def about(self) -> dict[str, str]:
        """The settings as metadata; what is not set is left out."""
        found = {"rank": self.rank, "density": self.density, "convention": self.convention}
        found |= {"seed": self.seed if self.method == "dare" else None}
        return {"method": self.method} | {key: str(value) for key, value in found.items() if value is not None}


def merge_loras(loras: Sequence[Lora], weights: Sequence[float], rule: MergeRule = MergeRule()) -> Operation:
    """Merge LoRAs by weights (any sign); a module that only some of them adapt counts as no change in the others.

    UserError for no LoRA, weights that do not match or are all zero, and LoRAs of different base models (when the
    module is made).
    """
    if not loras or len(loras) != len(weights):
        raise UserError(f"{len(loras)} LoRAs and {len(weights)} weights: give at least one LoRA, and each one weight.")
    if not any(weights):
        raise UserError("all weights are 0: the merged LoRA would change nothing.")

    def operate(name: str) -> Operated:
        pairs = [
            (lora.modules[name], weight) for lora, weight in zip(loras, weights, strict=True) if name in lora.modules
        ]
        modules, own_weights = [module for module, _ in pairs], [weight for _, weight in pairs]
        check_alike(name, modules)
        if rule.method == "sum":
            return sum_modules(modules, own_weights, rule.rank)
        return merge_dense(name, modules, own_weights, rule)

    about = {"operation": "merge", "weights": ",".join(f"{weight:g}" for weight in weights), **rule.about()}
    return Operation(united(loras), operate, about)


def sum_modules(modules: Sequence[LoraModule], weights: Sequence[float], rank: int | None) -> Operated:
    """The weighted sum of changes, exact or cut to a rank, with the part of the energy that the cut keeps."""
    total = sum(module.rank for module in modules)
    if rank is None or rank >= total:
        merged = weighted_sum(modules, weights)
        return Operated(merged, {"rank_before": total, "rank_after": merged.rank, "retained_energy": 1.0})
    found = spectrum(weighted_sum(modules, weights, torch.float64))
    cut = found.truncated(rank).cast(widest(modules))
    return Operated(cut, {"rank_before": total, "rank_after": cut.rank, "retained_energy": found.retained(rank)})


def merge_dense(name: str, modules: Sequence[LoraModule], weights: Sequence[float], rule: MergeRule) -> Operated:
    """One module by TIES, DARE or magnitude pruning, at a low rank.

    The row's `energy_ratio` is the merged change's energy over that of the plain weighted sum, `retained_energy` the
    part of it that the low rank keeps.
    """
    total, density = sum(module.rank for module in modules), rule.density
    assert density is not None
    deltas = [module.delta() for module in modules]
    plain = sum(weight * delta_OI for weight, delta_OI in zip(weights, deltas, strict=True))
    if rule.method == "ties":
        assert rule.convention is not None
        merged_OI = merge_by_signs(torch.stack(deltas), torch.tensor(weights), density, rule.convention)
    else:
        for index, module in enumerate(modules):
            if rule.method == "dare":
                deltas[index] = drop_at_random(deltas[index], density, generator_for(rule.seed, name, module))
            else:
                deltas[index] = keep_largest(deltas[index], density)
        merged_OI = torch.stack([w * delta_OI for w, delta_OI in zip(weights, deltas, strict=True)]).sum(0)
    low, retained = low_rank(merged_OI, rule.rank or total, generator_for(rule.seed, name))
    whole = float(torch.as_tensor(plain).square().sum())
    ratio = float(merged_OI.square().sum()) / whole if whole > 0 else 1.0
    result = low.cast(widest(modules))
    row = {"rank_before": total, "rank_after": result.rank, "retained_energy": retained, "energy_ratio": ratio}
    return Operated(result, row)
