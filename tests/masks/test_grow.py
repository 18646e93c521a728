"""Growing, cleaning and judging masks; growing against a brute-force distance."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from likeness.faces.detector import Face
from likeness.masks.grow import cleaned, grown, judged, resized


def square(size: int = 60, low: int = 20, high: int = 40) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[low:high, low:high] = True
    return mask


@settings(max_examples=25)
@given(st.integers(1, 12))
def test_growing_reaches_exactly_that_far(px):
    point = np.zeros((41, 41), bool)
    point[20, 20] = True
    rows, columns = np.mgrid[:41, :41]
    distance = np.hypot(rows - 20, columns - 20)
    disc = grown(point, px)
    assert disc[20, 20 + px] and disc[20 - px, 20] and not disc[20, min(40, 20 + px + 1)]
    # OpenCV's ellipse is a disc to within a pixel of its edge.
    assert disc[distance <= px - 1].all() and not disc[distance > px + 1].any()


def test_shrinking_takes_the_edge_but_not_the_photos_edge():
    assert np.array_equal(np.argwhere(grown(square(), -3))[[0, -1]], [[23, 23], [36, 36]])
    touching = np.zeros((60, 60), bool)
    touching[40:] = True
    assert grown(touching, -3)[43:].all() and not grown(touching, -3)[:43].any()
    assert np.array_equal(grown(square(), 0), square())


def test_specks_and_holes_go_and_shapes_stay():
    dirty = square()
    dirty[5, 5] = True
    dirty[30, 30] = False
    assert np.array_equal(cleaned(dirty), square())
    ring = square()
    ring[26:34, 26:34] = False
    assert np.array_equal(cleaned(ring), ring)
    assert not cleaned(np.zeros((9, 9), bool)).any()


def test_resizing_keeps_the_place():
    large = resized(square(), 120, 120)
    assert large[42:78, 42:78].all() and large.mean() == pytest.approx(square().mean(), abs=0.01)


FACE = Face((20, 20, 40, 40), None, 1.0)


@pytest.mark.parametrize(
    ("mask", "kind", "status"),
    [
        (square(), "face", "ok"),
        (np.zeros((60, 60), bool), "face", "empty_mask"),
        (np.ones((60, 60), bool), "head", "absurd_mask"),
        (np.ones((60, 60), bool), "person", "ok"),
        (square(low=0, high=15), "person", "absurd_mask"),
        (square(low=29, high=45), "head", "absurd_mask"),
        (square(low=26, high=45), "head", "ok"),
    ],
)
def test_what_cannot_be_meant_is_said(mask, kind, status):
    found, reason = judged(mask, FACE, kind)
    assert found == status and bool(reason) == (status != "ok")
    assert not reason or kind in reason
