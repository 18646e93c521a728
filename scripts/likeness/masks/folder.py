"""Masks by hand: the picture that the photos or pairs table names beside a photo, for every kind."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from likeness.config.masks import MaskKind, MaskSettings
from likeness.errors import UserError
from likeness.faces.detector import Face
from likeness.masks.grow import resized
from likeness.photos.load import load_alpha, load_photo

ASPECT_TOLERANCE = 0.02
BY_HAND = "folder"
"""What the table of masks calls the maker of one drawn by hand, whichever backend makes the others."""


def read_mask(path: str, height_px: int, width_px: int) -> NDArray[np.bool_]:
    """Read the user's mask at the photo's size (H, W): white inside, or a cut-out, opaque inside whatever its colours.

    Raises UserError for another shape or no picture.
    """
    alpha = load_alpha(path)
    grey = cv2.cvtColor(load_photo(path), cv2.COLOR_RGB2GRAY) if alpha is None else alpha
    height, width = grey.shape
    if abs(width / height / (width_px / height_px) - 1) > ASPECT_TOLERANCE:
        raise UserError(
            f"{path}: the mask is {width}x{height} px, the photo {width_px}x{height_px} px; their shapes differ. "
            "Draw the mask on the photo itself."
        )
    return resized(grey > 127, height_px, width_px)


class FolderMasker:
    """The backend of somebody who brings all masks: it can make none itself."""

    def __init__(self, settings: MaskSettings, store_root: Path, offline: bool, threads: int) -> None:
        cv2.setNumThreads(threads)

    @classmethod
    def fingerprint(cls, settings: MaskSettings, store_root: Path, offline: bool) -> str:
        """No weights."""
        return BY_HAND

    def mask(self, image_HWC: NDArray[np.uint8], face: Face, kind: MaskKind) -> NDArray[np.bool_]:
        """Return an empty mask (H, W): the photo has none of its own."""
        return np.zeros(image_HWC.shape[:2], bool)
