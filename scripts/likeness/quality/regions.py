"""Where on a photo things are measured: the face, its cheeks, the hair, the background.

Stored masks say it best; where one is missing an ellipse or box made from the face box stands in. All regions lie on
the grid of the image that they were made for, which may be the photo scaled down: `scale` says by how much.

Axes: H rows, W columns, C colour channels (red, green, blue). Pixel coordinates have their origin at the upper left
corner of the picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]

HEAD_GROWTH = 0.15
"""How far the head mask is grown (shadow, stray hair) before backgrounds are compared, as a share of the face's height."""
PERSON_GROWTH = 0.08
"""How far the person mask is grown before the background's colours are taken, as a share of the face's height."""


@dataclass(frozen=True)
class View:
    """One picture with one face in it.

    image_HWC: uint8 RGB. box: left, top, right, bottom of the face in px, or None without a face. landmarks_52: eyes
    (image left first), nose, mouth corners in px, or None. masks_HW: by kind (face, head, person), True inside; kinds
    may be missing. scale: px of this picture per px of the photo.
    """

    image_HWC: Image
    box: tuple[float, float, float, float] | None = None
    landmarks_52: NDArray[np.float64] | None = None
    masks_HW: Mapping[str, Mask] = field(default_factory=dict)
    scale: float = 1.0

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in px."""
        return self.image_HWC.shape[0], self.image_HWC.shape[1]

    @property
    def face_height_px(self) -> float:
        return 0.0 if self.box is None else self.box[3] - self.box[1]


def scaled_to(view: View, height_px: int, width_px: int) -> View:
    """Bring a view to another size; masks stay sharp, coordinates follow."""
    height, width = view.size
    if (height, width) == (height_px, width_px):
        return view
    ratio_x, ratio_y = width_px / width, height_px / height
    shrinking = ratio_x * ratio_y < 1
    image = cv2.resize(
        view.image_HWC, (width_px, height_px), interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_CUBIC
    )
    masks = {
        kind: cv2.resize(mask.astype(np.uint8), (width_px, height_px), interpolation=cv2.INTER_NEAREST_EXACT) > 0
        for kind, mask in view.masks_HW.items()
    }
    box = view.box and (view.box[0] * ratio_x, view.box[1] * ratio_y, view.box[2] * ratio_x, view.box[3] * ratio_y)
    landmarks = None if view.landmarks_52 is None else view.landmarks_52 * np.array([ratio_x, ratio_y])
    return replace(
        view,
        image_HWC=image,
        box=box,
        landmarks_52=landmarks,
        masks_HW=masks,
        scale=view.scale * (ratio_x + ratio_y) / 2,
    )


def scaled_down(view: View, longest_side_px: int) -> View:
    """Shrink a view whose longer side exceeds the limit; smaller ones stay as they are."""
    height, width = view.size
    ratio = longest_side_px / max(height, width)
    return view if ratio >= 1 else scaled_to(view, max(1, round(height * ratio)), max(1, round(width * ratio)))


def grown(mask_HW: Mask, radius_px: int) -> Mask:
    """Grow a mask by a disc of this radius in px; a radius below 1 changes nothing."""
    if radius_px < 1:
        return mask_HW
    return cv2.distanceTransform((~mask_HW).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) <= radius_px


def ellipse(shape: tuple[int, int], box: tuple[float, float, float, float]) -> Mask:
    """The ellipse that fills a box, as a mask of the given height and width."""
    x0, y0, x1, y1 = box
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    across = (columns + 0.5 - (x0 + x1) / 2) / max((x1 - x0) / 2, 0.5)
    down = (rows + 0.5 - (y0 + y1) / 2) / max((y1 - y0) / 2, 0.5)
    return across**2 + down**2 <= 1


def face_region(view: View) -> Mask:
    """The skin oval with its features: the face mask, else the ellipse in the face box; empty without a face."""
    mask = view.masks_HW.get("face")
    if mask is not None and mask.any():
        return mask
    return np.zeros(view.size, bool) if view.box is None else ellipse(view.size, view.box)


def head_region(view: View) -> Mask:
    """Face, ears and hair: the head mask, else an ellipse half as large again as the face box; empty without a face."""
    mask = view.masks_HW.get("head")
    if mask is not None and mask.any():
        return mask
    if view.box is None:
        return np.zeros(view.size, bool)
    x0, y0, x1, y1 = view.box
    width, height = x1 - x0, y1 - y0
    return ellipse(view.size, (x0 - 0.3 * width, y0 - 0.4 * height, x1 + 0.3 * width, y1 + 0.15 * height))


def person_region(view: View) -> Mask:
    """Head and body: the person mask, else the head and all below the chin three faces wide; empty without a face."""
    mask = view.masks_HW.get("person")
    if mask is not None and mask.any():
        return mask
    region = head_region(view).copy()
    if view.box is not None:
        x0, _, x1, y1 = view.box
        width = x1 - x0
        region[max(0, round(y1)) :, max(0, round(x0 - width)) : max(0, round(x1 + width))] = True
    return region


def background_region(view: View) -> Mask:
    """All outside the grown person."""
    return ~grown(person_region(view), round(PERSON_GROWTH * view.face_height_px))


def cheek_region(view: View) -> Mask:
    """Two patches of bare skin below the eyes at the height of the nose's tip, cut to the face mask.

    Their place does not hang on the mouth, so that a smile does not move them.
    """
    if view.box is None:
        return np.zeros(view.size, bool)
    x0, y0, x1, y1 = view.box
    if view.landmarks_52 is not None:
        left_eye, right_eye, nose = view.landmarks_52[:3]
        across = right_eye - left_eye
        apart = max(float(np.hypot(*across)), 1.0)
        down = np.array([-across[1], across[0]]) / apart
        drop = down * max(float((nose - (left_eye + right_eye) / 2) @ down), 0.3 * apart)
        centres = [left_eye - 0.1 * across + drop, right_eye + 0.1 * across + drop]
        radius = 0.18 * apart
    else:
        width, height = x1 - x0, y1 - y0
        centres = [np.array([x0 + share * width, y0 + 0.6 * height]) for share in (0.28, 0.72)]
        radius = 0.09 * width
    radius = max(radius, 1.0)
    face, region = face_region(view), np.zeros(view.size, bool)
    for x, y in centres:
        region |= ellipse(view.size, (x - radius, y - radius, x + radius, y + radius))
    return region & face if (region & face).any() else face


def hair_region(view: View) -> Mask | None:
    """The head without the face, or None where masks do not tell them apart."""
    head, face = view.masks_HW.get("head"), view.masks_HW.get("face")
    if head is None or face is None or not head.any() or not face.any():
        return None
    return head & ~grown(face, round(0.03 * view.face_height_px))
