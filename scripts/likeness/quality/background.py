"""Measures of what is behind the person: its colour in one word, and its colour histogram.

Axes: H rows, W columns, C colour channels (red, green, blue; uint8).
"""

from __future__ import annotations

from itertools import product

import numpy as np

from likeness.captions.facts import BACKGROUND_COLOURS
from likeness.quality.face import DIM_BELOW, brightest_part, lab
from likeness.quality.regions import View, background_region

NEAR = 30.0
"""Distance in CIELab (CIE76) within which a pixel has a named colour."""
MAIN_SHARE = 0.5
"""Share of the background that must have the colour by which it is named."""
LEAST_SHARE = 0.02
"""Share of the picture below which there is too little background to judge."""


def background_colour(view: View) -> str | None:
    """Name of the colour that most of the background has; None when mixed, near no named colour, or hardly visible."""
    region = background_region(view)
    if region.mean() < LEAST_SHARE:
        return None
    names = list(BACKGROUND_COLOURS)
    named_KC = lab(np.array(list(BACKGROUND_COLOURS.values())))
    pixels_PC = lab(np.clip(view.image_HWC[region] / 255 * _gain(view), 0, 1))
    distances_PK = np.linalg.norm(pixels_PC[:, None, :] - named_KC[None], axis=2)
    nearest = distances_PK.argmin(axis=1)
    near = distances_PK.min(axis=1) <= NEAR
    shares = np.bincount(nearest[near], minlength=len(names)) / len(pixels_PC)
    winner = int(shares.argmax())
    return names[winner] if shares[winner] >= MAIN_SHARE else None


def _gain(view: View) -> float:
    """How much to lighten a dimly lit photo before its colours are named: halfway, as eyes adapt only in part."""
    brightest = brightest_part(view)
    return 1.0 if brightest is None or brightest >= DIM_BELOW else (0.95 / max(brightest, 0.1)) ** 0.5


def background_histogram(view: View, bins: int) -> list[float] | None:
    """Colour histogram outside the person, bins**3 values (red slowest) that sum to 1; None when hardly visible.

    A pixel is shared among the bins around it by its distance to their centres, so that a shade more or less at the
    border of two bins does not make two backgrounds.
    """
    region = background_region(view)
    if region.mean() < LEAST_SHARE:
        return None
    position_PC = np.clip(view.image_HWC[region] / 255 * bins - 0.5, 0, bins - 1)
    below_PC = np.minimum(position_PC.astype(int), bins - 2)
    share_PC = position_PC - below_PC
    histogram = np.zeros(bins**3)
    for corner in product((0, 1), repeat=3):
        weights = np.prod(np.where(corner, share_PC, 1 - share_PC), axis=1)
        flat = (below_PC + corner) @ np.array([bins * bins, bins, 1])
        histogram += np.bincount(flat, weights, minlength=bins**3)
    return (histogram / histogram.sum()).tolist()
