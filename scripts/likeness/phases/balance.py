"""Draw the largest set whose framings (close, half, full) have the wished shares."""

from __future__ import annotations

import math
from collections.abc import Mapping


def balanced_counts(
    available: Mapping[str, int], shares: Mapping[str, float], tolerance: float, most: int | None = None
) -> dict[str, int]:
    """How many to take of each class: the largest total whose share of each class lies within `tolerance` of the wish.

    available: samples by class. shares: wishes by class, any positive scale; a class that is not named is not wished
    for. tolerance: 0..1. most: largest total, or None. Among sets of equal size the one nearest to the wish is taken.
    A class without any sample is left out and the others share its part.
    """
    wished = {name: share for name, share in shares.items() if share > 0 and available.get(name, 0) > 0}
    whole = sum(wished.values())
    wished = {name: share / whole for name, share in wished.items()}
    total = sum(available[name] for name in wished)
    for size in range(min(total, total if most is None else most), 0, -1):
        low = {name: max(0, math.ceil((share - tolerance) * size - 1e-9)) for name, share in wished.items()}
        high = {
            name: min(available[name], math.floor((share + tolerance) * size + 1e-9)) for name, share in wished.items()
        }
        feasible = all(low[name] <= high[name] for name in wished)
        if feasible and sum(low.values()) <= size <= sum(high.values()):
            return _nearest_to_wish(size, wished, low, high)
    return dict.fromkeys(wished, 0)


def _nearest_to_wish(
    size: int, wished: Mapping[str, float], low: Mapping[str, int], high: Mapping[str, int]
) -> dict[str, int]:
    """Fill up from the lower bounds, always the class that lacks most of its wish; ties by name."""
    counts = dict(low)
    while sum(counts.values()) < size:
        open_classes = [name for name in sorted(wished) if counts[name] < high[name]]
        lacking = max(open_classes, key=lambda name: wished[name] * size - counts[name])
        counts[lacking] += 1
    return counts
