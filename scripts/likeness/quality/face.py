"""Measures of one face in one photo; each is a small function of pixels and regions, none knows thresholds of a set.

Axes: H rows, W columns, C colour channels (red, green, blue; uint8). Left and right are the viewer's.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from likeness.quality.regions import Image, Mask, View, face_region

CLOSE_ABOVE, HALF_ABOVE = 0.33, 0.14
"""Face height over photo height above which a photo is a close portrait, or shows half the body."""
TURNED_BEYOND_DEG = 12.0
MIDDLE_GREY = 128.0
BLACK_BELOW, BURNT_ABOVE = 5, 250
"""Grey levels (0..255) at which a pixel holds no detail any more."""
DIM_BELOW = 0.62
"""Brightness of a face's brightest parts (whites of the eyes, highlights; 0..1) below which its light is dim."""
SIDE_LIGHT_BEYOND = 0.07
"""Difference of grey between the halves of a face over their sum, beyond which light comes from a side."""


def grey(image_HWC: Image) -> NDArray[np.float32]:
    """Luma of an sRGB image, 0..255."""
    return cv2.cvtColor(image_HWC, cv2.COLOR_RGB2GRAY).astype(np.float32)


def lab(colours_C: NDArray) -> NDArray[np.float64]:
    """CIELab (D65) of sRGB colours, channels last: uint8, or floats 0..1."""
    from skimage.color import rgb2lab

    return rgb2lab(colours_C)


def face_crop(view: View, largest_side_px: int) -> Image | None:
    """The square around the face box, scaled down to at most this side; None without a face inside the picture."""
    if view.box is None:
        return None
    x0, y0, x1, y1 = view.box
    half = max(x1 - x0, y1 - y0) / 2
    middle_x, middle_y = (x0 + x1) / 2, (y0 + y1) / 2
    height, width = view.size
    rows = slice(max(0, round(middle_y - half)), min(height, round(middle_y + half)))
    columns = slice(max(0, round(middle_x - half)), min(width, round(middle_x + half)))
    crop = view.image_HWC[rows, columns]
    if min(crop.shape[:2]) < 3:
        return None
    ratio = largest_side_px / max(crop.shape[:2])
    if ratio >= 1:
        return crop
    size = max(3, round(crop.shape[1] * ratio)), max(3, round(crop.shape[0] * ratio))
    return cv2.resize(crop, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


def sharpness(crop_HWC: Image) -> float:
    """Variance of the Laplacian of a face crop, in grey levels squared, as if the crop were exposed to middle grey.

    The variance grows with the square of the exposure, so that without this a dark face or dark skin would count as
    blurred. Crops must come from `face_crop`: the variance depends on the scale.
    """
    values = grey(crop_HWC)
    exposure = MIDDLE_GREY / max(float(values.mean()), 4.0)
    laplacian = cv2.Laplacian(values, cv2.CV_32F, borderType=cv2.BORDER_REFLECT_101)
    return float(laplacian[1:-1, 1:-1].var()) * exposure**2


def brightness(view: View) -> float | None:
    """Mean lightness L* of the face, 0..100."""
    region = face_region(view)
    return float(lab(view.image_HWC[region])[:, 0].mean()) if region.any() else None


def clipped_share(view: View) -> float | None:
    """Share of the face's pixels that are black or burnt out, 0..1."""
    region = face_region(view)
    if not region.any():
        return None
    values = grey(view.image_HWC)[region]
    return float(np.mean((values <= BLACK_BELOW) | (values >= BURNT_ABOVE)))


def framing_by_face_ratio(face_fraction: float) -> str:
    """Framing class from face height over photo height: close, half or full."""
    return "close" if face_fraction > CLOSE_ABOVE else "half" if face_fraction >= HALF_ABOVE else "full"


def pose_of(yaw_deg: float | None) -> str | None:
    """Where the face looks, as the viewer sees it: front, left or right; None where the yaw is unknown."""
    if yaw_deg is None:
        return None
    return "front" if abs(yaw_deg) <= TURNED_BEYOND_DEG else "left" if yaw_deg < 0 else "right"


def _halves(values_P: NDArray, region: Mask, axis: int) -> tuple[float, float]:
    """Means over the first and second half of a region (axis 0: top, bottom; 1: left, right), split at its middle.

    values_P: one value for each pixel of the region, in the order of `region.nonzero()`.
    """
    positions = np.nonzero(region)[axis]
    first = positions < (positions.min() + positions.max() + 1) / 2
    if first.all():
        return float(values_P.mean()), float(values_P.mean())
    return float(values_P[first].mean()), float(values_P[~first].mean())


def light_features(view: View) -> list[float] | None:
    """What tells light set-ups apart, in CIELab units: L*, left minus right L*, top minus bottom L*, a*, b* of the face."""
    region = face_region(view)
    if not region.any():
        return None
    colours = lab(view.image_HWC[region])
    left, right = _halves(colours[:, 0], region, 1)
    top, bottom = _halves(colours[:, 0], region, 0)
    middle = np.median(colours, axis=0)
    return [float(middle[0]), left - right, top - bottom, float(middle[1]), float(middle[2])]


def brightest_part(view: View) -> float | None:
    """The 99th percentile of the face's largest channel, 0..1: highlights and the whites of eyes, whatever the skin."""
    region = face_region(view)
    return float(np.percentile(view.image_HWC.max(axis=2)[region], 99)) / 255 if region.any() else None


def light_word(view: View) -> str | None:
    """The light in one word: dim, else left or right (where it comes from, for the viewer), else even.

    Dim is judged by the face's brightest parts, not by its mean, so that dark skin in good light is not dim.
    """
    region = face_region(view)
    if not region.any():
        return None
    if (brightest_part(view) or 0.0) < DIM_BELOW:
        return "dim"
    left, right = _halves(grey(view.image_HWC)[region], region, 1)
    balance = (left - right) / max(left + right, 1.0)
    return "even" if abs(balance) <= SIDE_LIGHT_BEYOND else "left" if balance > 0 else "right"
