"""An embedded face descriptor: gradients and local binary patterns of a levelled grey face. No weights.

It compares looks, not persons: light is divided out, but pose, expression and sharpness stay in. Its cosines lie on
another scale than a recogniser's, so it carries its own name and is never reported as csim.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.feature import hog, local_binary_pattern

from likeness.faces.detector import unit_length

KIND = "descriptor-hog-lbp-1"
SIDE_PX = 96
CELL_PX = 12
LBP_BINS = 10
# Eyes' place in the levelled square, as shares of its side: close to ArcFace's template without its tight margin.
LEFT_EYE, RIGHT_EYE = (0.34, 0.42), (0.66, 0.42)
BOX_SHARE = 0.80  # without eyes, the inner share of the box's longer side that holds the face


def levelled(
    image_HWC: NDArray[np.uint8], box: tuple[float, float, float, float], eyes_22: NDArray | None
) -> NDArray[np.uint8]:
    """Bring a face upright into a grey square, (SIDE_PX, SIDE_PX), by its eyes (2, 2) or, without them, by its box."""
    grey = cv2.cvtColor(image_HWC, cv2.COLOR_RGB2GRAY)
    if eyes_22 is None:
        middle = np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])
        half = max(box[2] - box[0], box[3] - box[1]) / 2 * BOX_SHARE
        reach = np.array([half, 0.0])
        here, there = np.array([middle - reach, middle + reach]), np.array([[0.0, 0.5], [1.0, 0.5]])
    else:
        here, there = np.asarray(eyes_22, np.float64), np.array([LEFT_EYE, RIGHT_EYE])
    across_here, across_there = here[1] - here[0], (there[1] - there[0]) * SIDE_PX
    # A similarity is one complex factor: turn and scale together.
    factor = complex(*across_there) / complex(*across_here)
    rotation = np.array([[factor.real, -factor.imag], [factor.imag, factor.real]])
    shift = there[0] * SIDE_PX - rotation @ here[0]
    flags = cv2.INTER_AREA if abs(factor) < 1 else cv2.INTER_LINEAR
    if abs(factor) < 0.5:
        # warpAffine does not average over what it shrinks.
        grey = cv2.GaussianBlur(grey, (0, 0), 0.5 / abs(factor))
        flags = cv2.INTER_LINEAR
    placed = cv2.warpAffine(
        grey, np.hstack([rotation, shift[:, None]]), (SIDE_PX, SIDE_PX), flags=flags, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(placed, np.uint8)


def describe(
    image_HWC: NDArray[np.uint8], box: tuple[float, float, float, float], eyes_22: NDArray | None
) -> NDArray[np.float32] | None:
    """Describe a face as a unit vector, (D,) float32; None for a face without any contrast."""
    grey = levelled(image_HWC, box, eyes_22)
    if int(grey.max()) - int(grey.min()) < 8:
        return None
    even = np.asarray(cv2.createCLAHE(clipLimit=2.0, tileGridSize=(4, 4)).apply(grey), np.uint8)
    gradients = hog(
        even, orientations=9, pixels_per_cell=(CELL_PX, CELL_PX), cells_per_block=(2, 2), block_norm="L2-Hys"
    )
    patterns = _pattern_histograms(even)
    # Both parts are non-negative; without their means unrelated faces would all look alike.
    parts = [part - part.mean() for part in (gradients, patterns)]
    lengths = [float(np.linalg.norm(part)) or 1.0 for part in parts]
    return unit_length(np.concatenate([2 * parts[0] / lengths[0], parts[1] / lengths[1]]))


def _pattern_histograms(grey: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Histogram of uniform local binary patterns a cell, root-scaled (Hellinger)."""
    codes = local_binary_pattern(grey, P=8, R=2, method="uniform").astype(int)
    cells = codes.reshape(SIDE_PX // 24, 24, SIDE_PX // 24, 24).transpose(0, 2, 1, 3).reshape(-1, 24 * 24)
    counts = np.stack([np.bincount(cell, minlength=LBP_BINS) for cell in cells])
    return np.sqrt(counts / (24 * 24)).ravel()
