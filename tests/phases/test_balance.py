"""Balance against brute force over all counts."""

from __future__ import annotations

from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from likeness.phases.balance import balanced_counts

CLASSES = ("close", "full", "half")


def best_by_brute_force(available: dict[str, int], shares: dict[str, float], tolerance: float, most: int | None) -> int:
    present = {name: share for name, share in shares.items() if share > 0 and available.get(name, 0) > 0}
    whole, best = sum(present.values()), 0
    for counts in product(*(range(available[name] + 1) for name in present)):
        size = sum(counts)
        near = all(
            abs(count / size - share / whole) <= tolerance + 1e-9
            for count, share in zip(counts, present.values(), strict=True)
            if size
        )
        if size and near and (most is None or size <= most):
            best = max(best, size)
    return best


@settings(max_examples=150, deadline=None)
@given(
    st.tuples(*(st.integers(0, 7) for _ in CLASSES)),
    st.tuples(*(st.sampled_from([0.0, 0.2, 1 / 3, 0.5, 1.0]) for _ in CLASSES)),
    st.sampled_from([0.0, 0.05, 0.1, 0.3]),
    st.one_of(st.none(), st.integers(1, 12)),
)
def test_the_set_is_the_largest_one(numbers, wishes, tolerance: float, most: int | None) -> None:
    available, shares = dict(zip(CLASSES, numbers, strict=True)), dict(zip(CLASSES, wishes, strict=True))
    counts = balanced_counts(available, shares, tolerance, most)
    size = sum(counts.values())
    assert size == best_by_brute_force(available, shares, tolerance, most)
    assert all(count <= available[name] for name, count in counts.items())
    whole = sum(shares[name] for name in counts)
    assert all(abs(count / size - shares[name] / whole) <= tolerance + 1e-6 for name, count in counts.items() if size)


def test_a_class_without_samples_leaves_its_part_to_the_others() -> None:
    assert balanced_counts({"close": 9, "half": 4}, {"close": 1, "half": 1, "full": 1}, 0.0) == {"close": 4, "half": 4}


def test_nearest_to_the_wish_among_equal_sizes() -> None:
    assert balanced_counts({"close": 20, "half": 20, "full": 2}, {"close": 1, "half": 1, "full": 1}, 0.1, 8) == {
        "close": 3,
        "half": 3,
        "full": 2,
    }
