"""Aggregation and intervals. Oracles: scipy.stats.ttest_1samp and bootstrap, plain averages, and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from likeness.evaluation.statistics import (
    BOOTSTRAP_FROM,
    cluster_means,
    estimate,
    holm_tested,
    paired_difference,
    standard_error,
    student_intervals,
)


def test_seeds_then_prompts_then_clusters():
    triples = [("s", "p", 0.0), ("s", "p", 1.0), ("s", "q", 1.0), ("t", "r", 0.2)]
    assert cluster_means(triples) == {"s": 0.75, "t": 0.2}


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("pqr"), st.floats(-1e3, 1e3)), min_size=1), st.randoms()
)
def test_order_of_rows_does_not_matter(triples, random):
    shuffled = list(triples)
    random.shuffle(shuffled)
    ours, theirs = cluster_means(triples), cluster_means(shuffled)
    assert list(ours) == list(theirs)
    assert all(math.isclose(ours[key], theirs[key], rel_tol=1e-12, abs_tol=1e-9) for key in ours)


def test_values_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        cluster_means([("s", "p", float("nan"))])
    with pytest.raises(ValueError, match="no cluster"):
        estimate([])


def test_few_clusters_give_students_interval():
    values = [0.2, 0.5, 0.4, 0.9, 0.7]
    interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    found = estimate(values)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-12)
    assert found.value == pytest.approx(np.mean(values)) and found.n == 5
    assert estimate([0.3]) == (0.3, None, None, 1)


def test_many_clusters_give_the_bootstraps_interval():
    values = np.random.default_rng(0).exponential(1, BOOTSTRAP_FROM)
    found = estimate(list(values))
    oracle = stats.bootstrap((values,), np.mean, n_resamples=20000, rng=np.random.default_rng(5)).confidence_interval
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high), abs=0.02)
    assert found == estimate(list(values))
    assert found.high - found.value > found.value - found.low
    assert estimate([0.5] * BOOTSTRAP_FROM)[1:3] == (0.5, 0.5)


def test_paired_difference_uses_shared_clusters_only_and_is_narrower_than_unpaired():
    base = dict(zip("abcdef", (0.1, 0.4, 0.2, 0.8, 0.6, 0.3), strict=True))
    ours = {prompt: value + 0.2 + 0.01 * at for at, (prompt, value) in enumerate(base.items())}
    found = paired_difference(ours | {"z": 9.0}, base)
    assert found.n == 6 and found.value == pytest.approx(0.225)
    unpaired = estimate(list(ours.values()))
    assert found.high - found.low < (unpaired.high - unpaired.low) / 4
    assert paired_difference({"a": 1.0}, {"b": 1.0}) is None


def test_standard_error_is_scipys():
    assert standard_error([1.0, 2.0, 4.0]) == pytest.approx(stats.sem([1.0, 2.0, 4.0]))
    assert standard_error([1.0]) == 0.0


@pytest.mark.parametrize("clusters", [3, 6, 12, 30])
def test_coverage_in_2000_simulations_is_93_to_97_percent(clusters):
    """Prompts with their own level and 2 seeds each; an interval over images instead of prompts covers far less."""
    rng = np.random.default_rng(clusters)
    images_SKs = rng.normal(0, 0.1, (2000, clusters, 1)) + rng.normal(0, 0.05, (2000, clusters, 2))
    low_high = student_intervals(images_SKs.mean(axis=2))
    coverage = np.mean((low_high[:, 0] <= 0) & (low_high[:, 1] >= 0))
    assert 0.93 <= coverage <= 0.97
    naive = student_intervals(images_SKs.reshape(2000, -1))
    assert np.mean((naive[:, 0] <= 0) & (naive[:, 1] >= 0)) < 0.93


def test_coverage_of_the_bootstrap_is_93_to_97_percent():
    rng = np.random.default_rng(1)
    covered = []
    for _ in range(8):
        data_SK = rng.normal(0, 0.1, (250, BOOTSTRAP_FROM))
        interval = stats.bootstrap(
            (data_SK,), np.mean, axis=-1, n_resamples=999, method="BCa", rng=rng, batch=100
        ).confidence_interval
        covered.append((interval.low <= 0) & (interval.high >= 0))
    assert 0.93 <= np.mean(covered) <= 0.97


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 9), st.integers(2, 12), st.integers(0, 2**32 - 1))
def test_holm_agrees_with_statsmodels_and_its_intervals_with_its_rejections(count, clusters, seed):
    samples = np.random.default_rng(seed).normal(np.linspace(0, 2, count)[:, None], 1, (count, clusters))
    found = holm_tested(dict(enumerate(samples)))
    p_values = [stats.ttest_1samp(sample, 0).pvalue for sample in samples]
    rejected, corrected, _, _ = multipletests(p_values, 0.05, "holm")
    for index in range(count):
        one = found[index]
        assert one.p == pytest.approx(p_values[index]) and one.p_holm == pytest.approx(corrected[index])
        assert one.value == pytest.approx(samples[index].mean()) and one.n == clusters
        assert bool(rejected[index]) == (not one.low <= 0 <= one.high)
        plain = student_intervals(samples[index][None])[0]
        assert one.low <= plain[0] + 1e-9 and one.high >= plain[1] - 1e-9


def test_holm_intervals_hold_all_true_differences_at_once():
    """Simulation: all of 8 true differences lie inside their intervals in at least 95 % of experiments."""
    generator, held = np.random.default_rng(1), 0
    for _ in range(200):
        truth = np.repeat([0.0, 1.0], 4)
        samples = generator.normal(truth[:, None], 1, (8, 10))
        found = holm_tested(dict(enumerate(samples)))
        held += all(found[at].low <= truth[at] <= found[at].high for at in range(4))
    assert held / 200 >= 0.93


def test_holm_of_constants_and_of_single_clusters():
    found = holm_tested({"none": [0.0, 0.0], "some": [0.5, 0.5], "one": [0.3], "empty": []})
    assert (found["none"].p, found["some"].p) == (1.0, 0.0)
    assert (found["some"].low, found["some"].high) == (0.5, 0.5)
    assert found["one"] == (0.3, None, None, 1, None, None)
    assert "empty" not in found
