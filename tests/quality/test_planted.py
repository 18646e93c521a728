"""Each planted defect moves its own measure past the default threshold, and no other measure past its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.quality.drawn import PAIR_DEFECTS, PHOTO_DEFECTS, good_pair, good_photo, measured, measured_pair

from likeness.config.quality import QualityLimits
from likeness.phases.rules import limits_of

SEEDS = range(5)


def broken(measures: dict[str, Any], kind: str) -> set[str]:
    """Columns that lie past their default threshold."""
    found = set()
    for limit in limits_of(QualityLimits(), kind):
        value = measures.get(limit.column)
        if limit.threshold is not None and value is not None:
            beyond = value > limit.threshold if limit.above else value < limit.threshold
            found |= {limit.column} if beyond else set()
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_good_photos_and_pairs_break_nothing(seed: int) -> None:
    assert broken(measured(good_photo(np.random.default_rng(seed))), "photos") == set()
    assert broken(measured_pair(*good_pair(np.random.default_rng(seed))), "pairs") == set()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("defect", PHOTO_DEFECTS)
def test_a_defect_of_a_photo_moves_its_own_measure_only(defect: str, seed: int) -> None:
    plant, column = PHOTO_DEFECTS[defect]
    assert broken(measured(plant(np.random.default_rng(seed))), "photos") == {column}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("defect", PAIR_DEFECTS)
def test_a_defect_of_a_pair_moves_its_own_measure_only(defect: str, seed: int) -> None:
    plant, column = PAIR_DEFECTS[defect]
    assert broken(measured_pair(*plant(np.random.default_rng(seed))), "pairs") == {column}
