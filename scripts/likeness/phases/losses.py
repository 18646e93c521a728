"""How well a training learned each sample, beside the others: its losses, freed of the noise levels that were drawn for it.

A loss says more of its noise level than of its sample: the velocity of a nearly clean picture is many times harder to tell
than that of pure noise. So the logarithm of every loss is taken as the sum of two parts,

    log loss = curve(sigma) + level of the sample,

a curve that all samples share, straight between knots, and a level for each. They are fitted in turn to what the other
leaves over (backfitting), which ends at the least squares of both together: a sample that happened to be drawn at hard
noise levels is compared with the others at these levels. Factors of the loss, such as a power or a multiple of the curve,
change no level.

Axes: N losses, K knots, S samples.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MOST_INTERVALS = 10
LOSSES_AN_INTERVAL = 8
"""The curve has ten straight pieces over equally many losses each, fewer in a log too short for so many."""
ROUNDS = 200
DIGITS = 6
"""Decimals of a level that count, so that a tie is one on every machine."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class TrainLoss:
    """One sample's loss over that of the middle sample at the same noise levels, and its place among all, 0 to 100."""

    ratio: float
    percentile: float


def train_losses(log: Sequence[Row], samples: Collection[str]) -> dict[str, TrainLoss]:
    """Compare the losses of `samples`, by sample id, in the later part of a training.

    log: rows of the LOG table in the order of steps. Other samples in it (pictures of the class), and losses of zero, do not
    count. A percentile is that of the middle of a sample's place: of four samples 12.5, 37.5, 62.5 and 87.5, of one 50;
    equal levels share the mean of their places. A sample without a loss is left out.
    """
    seen = [
        (sample, sigma, math.log(loss))
        for row in later_part(log, samples)
        for sample, sigma, loss in zip(row["samples"], row["sample_sigmas"], row["sample_losses"], strict=True)
        if sample in samples and 0 < loss < math.inf
    ]
    if not seen:
        return {}
    names, places_N = np.unique([sample for sample, _, _ in seen], return_inverse=True)
    sigmas_N, logs_N = (np.array([one[part] for one in seen], np.float64) for part in (1, 2))
    levels_S = sample_levels(places_N, sigmas_N, logs_N)
    percentiles_S = percentiles(levels_S)
    ratios_S = np.exp(levels_S - np.median(levels_S))
    return {
        str(name): TrainLoss(float(ratio), float(percentile))
        for name, ratio, percentile in zip(names, ratios_S, percentiles_S, strict=True)
    }


def later_part(log: Sequence[Row], samples: Collection[str]) -> Sequence[Row]:
    """The later half of the steps, or more where it takes more to have seen every sample: early losses tell of the base."""
    last_seen = {sample: place for place, row in enumerate(log) for sample in row["samples"] if sample in samples}
    return log[min([len(log) // 2, *last_seen.values()]) :]


def sample_levels(
    places_N: np.ndarray[Any, Any], sigmas_N: np.ndarray[Any, Any], logs_N: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """The level of every sample; `places_N` says whose each loss is. Levels have no zero of their own."""
    intervals = min(MOST_INTERVALS, len(logs_N) // LOSSES_AN_INTERVAL)
    knots_K = np.unique(np.quantile(sigmas_N, np.linspace(0, 1, intervals + 1)))
    hats_NK = np.stack([np.interp(sigmas_N, knots_K, one_K) for one_K in np.eye(len(knots_K))], axis=1)
    fit_KN = np.linalg.pinv(hats_NK)
    counts_S = np.bincount(places_N)
    levels_S = np.zeros(len(counts_S))
    for _ in range(ROUNDS):
        curve_N = hats_NK @ (fit_KN @ (logs_N - levels_S[places_N]))
        levels_S = np.bincount(places_N, logs_N - curve_N) / counts_S
    return np.round(levels_S, DIGITS)


def percentiles(values_S: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The middle of each value's place in the order, as a percentage; equal values share the mean of their places."""
    ordered_S = np.sort(values_S)
    below_S, up_to_S = (np.searchsorted(ordered_S, values_S, side) for side in ("left", "right"))
    return 100 * (below_S + up_to_S) / (2 * len(values_S))
