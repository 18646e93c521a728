"""Make drawn pictures as poor as the ones that evaluation has to score: small samples enlarged, noisy, off in colour.

Pictures are uint8, height x width x 3, RGB.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]

# Whoever enlarges a sample may choose another filter: none of them may matter.
ENLARGERS = (cv2.INTER_CUBIC, cv2.INTER_CUBIC, cv2.INTER_LINEAR, cv2.INTER_LANCZOS4)


def to_uint8(image: NDArray) -> Picture:
    """Turn 0..1 floats into bytes, rounding and clipping."""
    return np.clip(np.rint(image * 255), 0, 255).astype(np.uint8)


def enlarge(image: Picture, size_px: int, rng: np.random.Generator) -> Picture:
    """Resize to a square of `size_px` with a filter drawn by chance."""
    filter_ = ENLARGERS[rng.integers(len(ENLARGERS))]
    return cv2.resize(image, (size_px, size_px), interpolation=filter_).astype(np.uint8, copy=False)


def spoil(image: Picture, rng: np.random.Generator, noise: float = 0.05, tint: float = 0.08) -> Picture:
    """Add noise (at most this standard deviation, of 1), and change gain and offset of each channel a little."""
    values = image.astype(np.float32) / 255
    gain = rng.uniform(1 - tint, 1 + tint) * rng.uniform(1 - tint / 2, 1 + tint / 2, 3)
    values = (values - 0.5) * gain + 0.5 + rng.uniform(-tint / 2, tint / 2)
    if rng.uniform() < 0.5:
        values += rng.uniform(0, noise) * rng.standard_normal(values.shape, dtype=np.float32)
    return to_uint8(values)


def shrink(image: Picture, height_px: int) -> Picture:
    """Shrink by averaging areas, as a small render would look."""
    return cv2.resize(image, (height_px, height_px), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
