"""Giving a LoRA a lower rank: for every module the best change of a rank, chosen by its own singular values.

Modules are resized in diffusers' names, where query, key and value of the double blocks are separate; a file that holds
them fused gives other ranks when it is resized fused. Criteria are kohya's (networks/resize_lora.py of sd-scripts),
its way of counting being one of two: `kohya` keeps one singular value more than its criterion asks for, and never
fewer than two; `minimal` keeps the smallest number that fulfils it.

Axes: K singular values, descending.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from likeness.errors import UserError
from likeness.lora.adapter import Lora, LoraModule
from likeness.lora.factors import spectrum
from likeness.lora.operation import Operated, Operation

Criterion = Literal["fixed", "ratio", "frobenius", "cumulative"]
Counting = Literal["minimal", "kohya"]

LOWEST_ADVISED_RANK = 4
"""Below it fine texture such as skin is said to go."""
_ROUNDING = 1e-12


@dataclass(frozen=True)
class RankRule:
    """How a module's new rank follows from its singular values s₁ ≥ s₂ ≥ …, never above `rank`, never below 1.

    fixed: `rank`. ratio: all with s ≥ s₁ / threshold. frobenius: as many as keep that part of the Frobenius norm
    √Σs². cumulative: as many as keep that part of Σs. UserError for thresholds that cannot be meant.
    """

    rank: int
    criterion: Criterion = "fixed"
    threshold: float | None = None
    counting: Counting = "minimal"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"rank: {self.rank} is not allowed; a LoRA has a rank of 1 or more.")
        if self.criterion == "fixed":
            if self.threshold is not None or self.counting == "kohya":
                raise UserError("a fixed rank takes no threshold and knows no kohya counting: choose a criterion.")
        elif self.threshold is None:
            raise UserError(f"{self.criterion} needs a threshold.")
        elif self.criterion == "ratio" and not self.threshold >= 1:
            raise UserError(
                f"ratio: {self.threshold:g} is not allowed; it is the largest singular value over the smallest kept "
                "one, so 1 or more (10 to 50 are usual). kohya's tool takes 0.8 and makes every module rank 2. To "
                f"keep {self.threshold:.0%} of the norm use frobenius, of the sum of singular values cumulative."
            )
        elif self.criterion != "ratio" and not 0 < self.threshold <= 1:
            raise UserError(f"{self.criterion}: {self.threshold:g} is not allowed; it is a part, above 0 up to 1.")


def choose_rank(singular_K: torch.Tensor, rule: RankRule) -> int:
    """The new rank of a module with these singular values (descending), at most as many as there are.

    Where all are zero, 1.
    """
    most = min(rule.rank, len(singular_K))
    largest = float(singular_K[0])
    if largest <= 0 or most == 1:
        return 1
    if rule.criterion == "fixed":
        return most
    if rule.counting == "kohya":
        return min(_kohya_index(singular_K, rule) + 1, most)
    if rule.criterion == "ratio":
        assert rule.threshold is not None
        return min(int((singular_K >= largest / rule.threshold).sum()), most)
    return min(_first_reaching(singular_K, rule, _ROUNDING) + 1, most)


def resize_module(module: LoraModule, rule: RankRule) -> Operated:
    """One module at its new rank, with its old and new rank and the part of its energy (squared norm) that was kept."""
    found = spectrum(module)
    rank = choose_rank(found.singular_K, rule)
    return Operated(
        found.truncated(rank),
        {"rank_before": module.rank, "rank_after": rank, "retained_energy": found.retained(rank)},
    )


def resize_lora(lora: Lora, rule: RankRule) -> Operation:
    """Every module of a LoRA at the rank that the rule chooses for it; scales stay as they are."""
    about = {"operation": "resize", "rank": str(rule.rank), "criterion": rule.criterion, "counting": rule.counting}
    if rule.threshold is not None:
        about["threshold"] = f"{rule.threshold:g}"
    return Operation(sorted(lora.modules), lambda name: resize_module(lora.modules[name], rule), about)


def low_ranks(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """A warning if modules went below rank 4 that were not below it before; else nothing."""
    low = [row["module"] for row in rows if row["rank_after"] < min(LOWEST_ADVISED_RANK, row["rank_before"])]
    if not low:
        return []
    return [
        f"{len(low)} modules have a rank below {LOWEST_ADVISED_RANK} (first {low[0]!r}): fine texture such as skin may "
        "be lost. Look at the retained energy, or ask for more."
    ]


def _first_reaching(singular_K: torch.Tensor, rule: RankRule, tolerance: float) -> int:
    """Index of the first singular value with which the running sum reaches the rule's part."""
    assert rule.threshold is not None
    power, part = (2, rule.threshold**2) if rule.criterion == "frobenius" else (1, rule.threshold)
    running_K = singular_K.double().pow(power).cumsum(0)
    return int(torch.searchsorted(running_K / running_K[-1], part * (1 - tolerance)))


def _kohya_index(singular_K: torch.Tensor, rule: RankRule) -> int:
    assert rule.threshold is not None
    if rule.criterion == "ratio":
        index = int((singular_K > singular_K[0] / rule.threshold).sum())
    else:
        index = _first_reaching(singular_K, rule, 0.0) + 1
    return max(1, min(index, len(singular_K) - 1))
