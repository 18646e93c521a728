"""What a promptable model is told for each kind of mask: a box and points, derived from the face.

Lengths are in face heights, measured from the face box, which reaches from the hairline to the chin. Prompts beyond the
picture are cut at its edge (boxes) or left out (points).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from likeness.config.masks import MaskKind
from likeness.faces.detector import Face


@dataclass(frozen=True)
class Prompt:
    """box_4: left, top, right, bottom, px. points_P2: px. labels_P: 1 inside, 0 outside."""

    box_4: NDArray[np.float32]
    points_P2: NDArray[np.float32]
    labels_P: NDArray[np.int64]


def prompt_for(face: Face, kind: MaskKind, height_px: int, width_px: int) -> Prompt:
    """Say where a kind of mask lies: its box, points inside (face, hair, chest) and points outside (hair, neck)."""
    x0, y0, x1, y1 = face.box
    tall, middle = y1 - y0, (x0 + x1) / 2
    centre = (middle, (y0 + y1) / 2)
    if kind == "face":
        margin = 0.05 * tall
        box = (x0 - margin, y0 - margin, x1 + margin, y1 + margin)
        inside = [centre] if face.landmarks_52 is None else [(float(x), float(y)) for x, y in face.landmarks_52]
        outside = [(middle, y0 - 0.25 * tall), (middle, y1 + 0.40 * tall)]
    elif kind == "head":
        box = (middle - 0.75 * tall, y1 - 1.60 * tall, middle + 0.75 * tall, y1 + 0.10 * tall)
        inside, outside = [centre, (middle, y0 - 0.05 * tall)], [(middle, y1 + 0.45 * tall)]
    else:
        box = (middle - 1.80 * tall, y1 - 1.60 * tall, middle + 1.80 * tall, y1 + 7.50 * tall)
        inside, outside = [centre, (middle, y1 + 1.0 * tall)], []
    points = [(*point, 1) for point in inside] + [(*point, 0) for point in outside]
    kept = [(x, y, label) for x, y, label in points if 0 <= x < width_px and 0 <= y < height_px]
    limits = np.array([width_px, height_px, width_px, height_px])
    return Prompt(
        np.clip(np.array(box), 0, limits).astype(np.float32),
        np.array([(x, y) for x, y, _ in kept], np.float32).reshape(-1, 2),
        np.array([label for _, _, label in kept], np.int64),
    )
