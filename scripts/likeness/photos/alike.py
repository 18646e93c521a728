"""Look again at photos whose perceptual hashes are close: small copies tell near duplicates from mere look-alikes.

A 64-bit hash keeps the signs of a few coefficients, so photos of one person in one composition can be close in it. Grey
copies of 32 × 32 px, correlated after their mean is removed, part the two: resized, compressed, brightened, slightly
cropped or greyed copies stay above 0.98, other photos of the same composition below (measured on planted cases).
Only photos that the hash found are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from likeness.photos.load import PhotoError, decode_image, read_photo_bytes
from likeness.store import sha256_of_bytes

SIDE_PX = 32
ALIKE = 0.98
"""Correlation of small copies from which two photos count as the same picture."""
PHOTO_COLUMNS = (("path", "sha256"),)
PAIR_COLUMNS = (("target_path", "sha256"), ("source_path", "source_sha256"))


class SmallCopies:
    """Small copies of photos by path, each read once; `alike` compares two rows of a photos or pairs table."""

    def __init__(self) -> None:
        self.copies: dict[str, np.ndarray | None] = {}

    def alike(self, first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
        """Whether all images of two rows are the same picture, or all mirrored; True where a file cannot be looked at."""
        columns = PAIR_COLUMNS if "target_path" in first else PHOTO_COLUMNS
        plain = mirrored = True
        for path, sha256 in columns:
            one, other = self.copy(first[path], first[sha256]), self.copy(second[path], second[sha256])
            if one is None or other is None:
                continue
            plain &= correlation(one, other) >= ALIKE
            mirrored &= correlation(one, other[:, ::-1]) >= ALIKE
        return bool(plain or mirrored)

    def copy(self, path: str, sha256: str) -> np.ndarray | None:
        """The small copy of one photo, (32, 32) with mean 0; None when the file is gone or another by now."""
        if path not in self.copies:
            self.copies[path] = small_copy(path, sha256)
        return self.copies[path]


def small_copy(path: str, sha256: str) -> np.ndarray | None:
    """Read a photo as (32, 32) grey values with mean 0; None when its bytes are not those of `sha256`."""
    try:
        data = read_photo_bytes(path)
        if sha256_of_bytes(data) != sha256:
            return None
        image = decode_image(data, path)
    except PhotoError:
        return None
    grey = np.asarray(image.convert("L").resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX), dtype=np.float64)
    return grey - grey.mean()


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson correlation of two small copies, -1..1; 0 where one is a single flat colour."""
    norm = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float((one * other).sum()) / norm if norm > 0 else 0.0
