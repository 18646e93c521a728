"""Losses freed of their noise levels, against planted factors, dense least squares and SciPy's percentiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import percentileofscore

from likeness.phases.losses import later_part, percentiles, sample_levels, train_losses

Curve = Callable[[float], float]
Row = dict[str, Any]


def hard_when_clean(sigma: float) -> float:
    """The shape of a velocity loss: many times larger near a clean picture."""
    return 0.1 + 3 * (1 - sigma) ** 3 + 0.3 * sigma


def log_of(factors: list[float], steps: int, seed: int, curve: Curve = hard_when_clean, batch: int = 2) -> list[Row]:
    """A log whose losses are curve(sigma) times the factor of the sample; each sample has noise levels of its own.

    The worst samples are drawn where the curve is low, so that plain means tell the opposite.
    """
    rng = np.random.default_rng(seed)
    count, rows = len(factors), []
    for step in range(1, steps + 1):
        chosen = rng.permutation(count)[:batch].tolist()
        sigmas = [float(0.5 * rng.beta(2, 2) + 0.5 * one / count) for one in chosen]
        losses = [curve(sigma) * factors[one] for one, sigma in zip(chosen, sigmas, strict=True)]
        rows.append(log_row(step, [f"s{one}" for one in chosen], losses, sigmas))
    return rows


def log_row(step: int, samples: list[str], losses: list[float], sigmas: list[float]) -> Row:
    return {"step": step, "samples": samples, "sample_losses": losses, "sample_sigmas": sigmas}


def in_order(values: dict[str, float]) -> list[str]:
    return sorted(values, key=lambda name: values[name])


def plain_means(log: list[Row]) -> dict[str, float]:
    by_sample: dict[str, list[float]] = {}
    for row in log:
        for sample, loss in zip(row["samples"], row["sample_losses"], strict=True):
            by_sample.setdefault(sample, []).append(loss)
    return {sample: float(np.mean(losses)) for sample, losses in by_sample.items()}


@pytest.mark.parametrize("seed", range(5))
def test_the_order_is_that_of_the_planted_factors_and_plain_means_are_fooled(seed: int) -> None:
    factors = [1.2**one for one in range(8)]
    log = log_of(factors, 200, seed)
    names = [f"s{one}" for one in range(8)]
    found = train_losses(log, names)
    assert in_order({name: loss.percentile for name, loss in found.items()}) == names
    assert in_order(plain_means(log[100:])) != names
    ratios = np.array([found[name].ratio for name in names])
    np.testing.assert_allclose(ratios, np.array(factors) / np.median(factors), rtol=0.1)
    assert [found[name].percentile for name in names] == [6.25 + 12.5 * one for one in range(8)]


def test_factors_turned_round_turn_the_order_round() -> None:
    """A sample is not called bad for its noise levels alone."""
    log = log_of([1.2**-one for one in range(8)], 200, seed=0)
    found = train_losses(log, [f"s{one}" for one in range(8)])
    assert in_order({name: loss.percentile for name, loss in found.items()}) == [f"s{one}" for one in range(7, -1, -1)]


def test_levels_are_those_of_dense_least_squares() -> None:
    """The oracle solves for the curve and all levels at once, with a column a knot and a column a sample."""
    rng = np.random.default_rng(3)
    places_N = rng.integers(0, 6, 240)
    sigmas_N = np.clip(rng.normal(0.3 + 0.06 * places_N, 0.2), 0, 1)
    logs_N = rng.normal(np.cos(5 * sigmas_N) + 0.2 * places_N, 0.3)
    knots_K = np.quantile(sigmas_N, np.linspace(0, 1, 11))
    hats = []
    for place, knot in enumerate(knots_K):
        left = knots_K[place - 1] if place else -np.inf
        right = knots_K[place + 1] if place < 10 else np.inf
        up = np.where(np.isinf(left), 1.0, (sigmas_N - left) / (knot - left) if place else 1.0)
        down = np.where(np.isinf(right), 1.0, (right - sigmas_N) / (right - knot) if place < 10 else 1.0)
        hats.append(np.clip(np.where(sigmas_N <= knot, up, down), 0, None))
    design = np.stack([*hats, *(places_N == one for one in range(6))], axis=1).astype(float)
    solution = np.linalg.lstsq(design, logs_N, rcond=None)[0][11:]
    found = sample_levels(places_N, sigmas_N, logs_N)
    np.testing.assert_allclose(found - found.mean(), solution - solution.mean(), atol=2e-5)


@settings(max_examples=40, deadline=None)
@given(power=st.floats(0.2, 3), multiple=st.floats(1e-3, 1e3), seed=st.integers(0, 1000))
def test_a_monotone_rescaling_of_the_curve_changes_no_place(power: float, multiple: float, seed: int) -> None:
    factors = [1.3**one for one in range(6)]
    names = [f"s{one}" for one in range(6)]
    plain = train_losses(log_of(factors, 160, seed), names)
    scaled = train_losses(log_of(factors, 160, seed, lambda sigma: multiple * hard_when_clean(sigma) ** power), names)
    places = {name: loss.percentile for name, loss in plain.items()}
    assert in_order(places) == names
    assert {name: loss.percentile for name, loss in scaled.items()} == places


@settings(max_examples=40, deadline=None)
@given(multiple=st.floats(0.01, 100), seed=st.integers(0, 1000), steps=st.integers(1, 60))
def test_a_multiple_of_all_losses_changes_nothing(multiple: float, seed: int, steps: int) -> None:
    log = log_of([1.0, 1.1, 0.8, 2.0], steps, seed)
    names = {"s0", "s1", "s2", "s3"}
    other = [row | {"sample_losses": [multiple * loss for loss in row["sample_losses"]]} for row in log]
    first, second = train_losses(log, names), train_losses(other, names)
    assert first.keys() == second.keys()
    for name, loss in first.items():
        assert second[name].ratio == pytest.approx(loss.ratio, rel=1e-4)


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, -3.0]), min_size=1, max_size=20))
def test_percentiles_agree_with_scipy_and_share_ties(values: list[float]) -> None:
    expected = [percentileofscore(values, value, kind="mean") for value in values]
    np.testing.assert_allclose(percentiles(np.array(values)), expected)
    ranks = pd.Series(values).rank(method="average")
    np.testing.assert_allclose(percentiles(np.array(values)), 100 * (ranks - 0.5) / len(values))


def test_one_sample_is_in_the_middle_and_equal_ones_are_alike() -> None:
    log = [log_row(step, ["a"], [1.0 / step], [0.5]) for step in range(1, 5)]
    assert train_losses(log, {"a"})["a"].percentile == 50
    both = [log_row(step, ["a", "b"], [2.0, 2.0], [0.4, 0.4]) for step in range(1, 5)]
    found = train_losses(both, {"a", "b"})
    assert [found[name].percentile for name in "ab"] == [50, 50] and found["a"].ratio == 1


def test_pictures_of_the_class_and_losses_of_zero_do_not_count() -> None:
    log = log_of([1.0, 1.5], 40, seed=1)
    alone = train_losses(log, {"s0", "s1"})
    mixed = [
        log_row(
            row["step"],
            [*row["samples"], "class", "s0"],
            [*row["sample_losses"], 99.0, 0.0],
            [*row["sample_sigmas"], 0.1, 0.2],
        )
        for row in log
    ]
    assert train_losses(mixed, {"s0", "s1"}) == alone
    assert train_losses(log, {"other"}) == {} and train_losses([], {"s0"}) == {}


def test_the_later_half_counts_and_more_where_some_were_seen_only_before() -> None:
    seen = [["a", "b"], ["c"], ["a"], ["b"], ["a"], ["b"]]
    log = [log_row(step, samples, [1.0] * len(samples), [0.5] * len(samples)) for step, samples in enumerate(seen, 1)]
    assert [row["step"] for row in later_part(log, {"a", "b"})] == [4, 5, 6]
    assert [row["step"] for row in later_part(log, {"a", "b", "c", "never"})] == [2, 3, 4, 5, 6]


def test_what_was_learned_late_is_no_longer_bad() -> None:
    early = [log_row(step, ["a", "b"], [9.0, 1.0], [0.5, 0.5]) for step in range(1, 11)]
    late = [log_row(step, ["a", "b"], [1.0, 1.2], [0.5, 0.5]) for step in range(11, 21)]
    found = train_losses([*early, *late], {"a", "b"})
    assert found["b"].percentile == 75 > found["a"].percentile


def test_a_sample_seen_once_is_compared_at_its_noise_level() -> None:
    """With one loss a sample only the curve of all tells hard noise levels from hard samples."""
    rng = np.random.default_rng(0)
    sigmas = rng.uniform(0, 1, 60).tolist()
    bad = int(np.argmax(sigmas))
    losses = [hard_when_clean(sigma) * (3 if place == bad else 1) for place, sigma in enumerate(sigmas)]
    log = [log_row(place + 1, [f"s{place}"], [losses[place]], [sigmas[place]]) for place in range(60)]
    found = train_losses(log, {f"s{place}" for place in range(60)})
    assert max(found, key=lambda name: found[name].percentile) == f"s{bad}"
    assert max(plain_means(log).items(), key=lambda one: one[1])[0] != f"s{bad}"
