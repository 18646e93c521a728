"""Clean, grow and judge masks. Masks are bool, axes H rows, W columns."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from likeness.faces.detector import Face

Mask = NDArray[np.bool_]

SPECK_SHARE = 0.01  # pieces and holes below this share of the mask are noise
ALL_OF_PHOTO = 0.98
LEAST_FACE_INSIDE = 0.5


def grown(mask_HW: Mask, grow_px: int) -> Mask:
    """Grow (positive) or shrink (negative) a mask by `grow_px` with an elliptic kernel of odd side 2 |grow_px| + 1."""
    if grow_px == 0:
        return mask_HW
    side = 2 * abs(grow_px) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    # A mask that touches the photo's edge goes on beyond it: shrinking takes nothing away there.
    change, outside = (cv2.dilate, 0) if grow_px > 0 else (cv2.erode, 1)
    return change(mask_HW.astype(np.uint8), kernel, borderType=cv2.BORDER_CONSTANT, borderValue=outside) > 0


def cleaned(mask_HW: Mask) -> Mask:
    """Drop specks and close holes smaller than SPECK_SHARE of the mask."""
    limit = int(SPECK_SHARE * int(mask_HW.sum()))
    if limit < 1:
        return mask_HW
    from skimage.morphology import remove_small_holes, remove_small_objects

    return remove_small_holes(remove_small_objects(mask_HW, max_size=limit), max_size=limit)


def resized(mask_HW: Mask, height_px: int, width_px: int) -> Mask:
    """Bring a mask to another size, with the edge where the interpolated coverage is one half."""
    if mask_HW.shape == (height_px, width_px):
        return mask_HW
    return cv2.resize(mask_HW.astype(np.float32), (width_px, height_px), interpolation=cv2.INTER_LINEAR) > 0.5


def judged(mask_HW: Mask, face: Face, kind: str) -> tuple[str, str]:
    """Say whether a mask can be meant: ('ok', '') or a status with its reason for people."""
    share = float(mask_HW.mean())
    if share == 0:
        return "empty_mask", f"the {kind} mask is empty"
    if share > ALL_OF_PHOTO and kind != "person":
        return "absurd_mask", f"the {kind} mask covers {share:.0%} of the photo"
    x0, y0, x1, y1 = face.box
    # The middle half of the box is face in any pose.
    rows = slice(int(y0 + (y1 - y0) / 4), max(int(y0 + (y1 - y0) / 4) + 1, int(y1 - (y1 - y0) / 4)))
    columns = slice(int(x0 + (x1 - x0) / 4), max(int(x0 + (x1 - x0) / 4) + 1, int(x1 - (x1 - x0) / 4)))
    inside = float(mask_HW[rows, columns].mean())
    if inside < LEAST_FACE_INSIDE:
        return "absurd_mask", f"the {kind} mask holds only {inside:.0%} of the middle of the face"
    return "ok", ""
