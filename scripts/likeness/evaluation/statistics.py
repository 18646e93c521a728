"""From single images to one number with an interval: seeds → prompts → subject.

Images of one prompt are not independent, and neither are edits of one source, so a cluster (prompt or source) counts
once: its mean over seeds is one observation, and intervals come from the spread of these means. With few clusters that
is Student's t; the bias-corrected and accelerated bootstrap, which follows skewed values, takes over from 50 clusters,
because below that its intervals of a mean are too short (2,000 simulations: 89 % instead of 95 % with 8 clusters, 92 %
with 20 to 40, where Student's t keeps 94 to 96 %).

Axes: K clusters.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95
BOOTSTRAP_FROM = 50
RESAMPLES = 4999


class Estimate(NamedTuple):
    """A mean over clusters, its interval (None where one cluster gives none) and the number of clusters."""

    value: float
    low: float | None
    high: float | None
    n: int


def cluster_means(values: Iterable[tuple[Hashable, Hashable, float]]) -> dict[Hashable, float]:
    """Average (cluster, prompt, value) triples over seeds within a prompt, then over prompts within a cluster.

    The result is ordered by cluster. Raises ValueError for a value that is not finite.
    """
    by_prompt: defaultdict[tuple[Hashable, Hashable], list[float]] = defaultdict(list)
    for cluster, prompt, value in values:
        by_prompt[cluster, prompt].append(value)
    by_cluster: defaultdict[Hashable, list[float]] = defaultdict(list)
    for cluster, prompt in sorted(by_prompt, key=repr):
        numbers = by_prompt[cluster, prompt]
        if not all(map(math.isfinite, numbers)):
            raise ValueError(f"a value of prompt {prompt!r} is not finite")
        by_cluster[cluster].append(math.fsum(numbers) / len(numbers))
    return {cluster: math.fsum(means) / len(means) for cluster, means in by_cluster.items()}


def estimate(means: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Mean of cluster means with its confidence interval. Raises ValueError without any cluster."""
    means_K = np.asarray(means, np.float64)
    if means_K.size == 0:
        raise ValueError("no cluster to estimate from")
    value = math.fsum(means_K) / means_K.size
    if means_K.size == 1:
        return Estimate(value, None, None, 1)
    low, high = (_bootstrap if means_K.size >= BOOTSTRAP_FROM else _student)(means_K, confidence)
    return Estimate(value, low, high, int(means_K.size))


def paired_difference(
    ours: Mapping[Hashable, float], base: Mapping[Hashable, float], confidence: float = CONFIDENCE
) -> Estimate | None:
    """Estimate ours minus base over the clusters that both have; None where they share none."""
    shared = [cluster for cluster in ours if cluster in base]
    return estimate([ours[cluster] - base[cluster] for cluster in shared], confidence) if shared else None


class Tested(NamedTuple):
    """A paired difference among several: its mean, its interval, and p before and after the correction for their number."""

    value: float
    low: float | None
    high: float | None
    n: int
    p: float | None
    p_holm: float | None


def within(found: Estimate, lowest: float | None, highest: float | None) -> Estimate:
    """The same estimate with its interval cut to what the quantity can be; that leaves out no true value."""
    low, high = found.low, found.high
    if low is not None and lowest is not None:
        low = max(low, lowest)
    if high is not None and highest is not None:
        high = min(high, highest)
    return found._replace(low=low, high=high)


def holm_tested(
    differences: Mapping[Hashable, Sequence[float]], confidence: float = CONFIDENCE
) -> dict[Hashable, Tested]:
    """Test each list of cluster-wise differences against 0 by Student's t, corrected by Holm for their number.

    An interval leaves 0 out exactly when Holm's procedure rejects at 1 - confidence: the one with the i-th smallest p
    of m is widened to 1 - alpha / (m - i), and all from the first that is not rejected share its width. One cluster
    gives neither interval nor p. Source: Holm 1979; intervals as in Serlin 1993.
    """
    samples = {key: np.asarray(values, np.float64) for key, values in differences.items() if len(values)}
    testable = {key: _student_p(values_K) for key, values_K in samples.items() if values_K.size > 1}
    ordered = sorted(testable, key=lambda key: testable[key])
    alpha, share, adjusted = 1 - confidence, 1.0, 0.0
    corrected: dict[Hashable, tuple[float, float]] = {}
    is_open = True
    for place, key in enumerate(ordered):
        left = len(ordered) - place
        adjusted = max(adjusted, min(1.0, left * testable[key]))
        share = alpha / left if is_open else share
        is_open = is_open and testable[key] <= share
        corrected[key] = (adjusted, share)
    found: dict[Hashable, Tested] = {}
    for key, values_K in samples.items():
        value, size = math.fsum(values_K) / values_K.size, int(values_K.size)
        if key in corrected:
            low, high = _student(values_K, 1 - corrected[key][1])
            found[key] = Tested(value, low, high, size, testable[key], corrected[key][0])
        else:
            found[key] = Tested(value, None, None, size, None, None)
    return found


def _student_p(means_K: NDArray[np.float64]) -> float:
    """Two-sided p of a mean of 0; 1 where all values are 0, and 0 where all are the same other value."""
    if np.ptp(means_K) == 0:
        return 1.0 if means_K[0] == 0 else 0.0
    return float(np.asarray(stats.ttest_1samp(means_K, 0.0))[1])


def standard_error(means: Sequence[float]) -> float:
    """Standard error of the mean of cluster means; 0 for a single cluster."""
    means_K = np.asarray(means, np.float64)
    return float(means_K.std(ddof=1) / math.sqrt(means_K.size)) if means_K.size > 1 else 0.0


def student_intervals(means_SK: NDArray[np.float64], confidence: float = CONFIDENCE) -> NDArray[np.float64]:
    """Student's t intervals (S, 2) of S samples of K cluster means each."""
    count = means_SK.shape[-1]
    half_width = stats.t.ppf((1 + confidence) / 2, count - 1) * means_SK.std(axis=-1, ddof=1) / math.sqrt(count)
    centre = means_SK.mean(axis=-1)
    return np.stack([centre - half_width, centre + half_width], axis=-1)


def _student(means_K: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    low, high = student_intervals(means_K[None], confidence)[0]
    return float(low), float(high)


def _bootstrap(means_K: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    if np.ptp(means_K) == 0:
        return float(means_K[0]), float(means_K[0])
    interval = stats.bootstrap(
        (means_K,),
        np.mean,
        confidence_level=confidence,
        n_resamples=RESAMPLES,
        method="BCa",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(interval.low), float(interval.high)
