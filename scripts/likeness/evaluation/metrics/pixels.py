"""Metrics of pixels: background, shift, colours, contrast and grain against the base's image or the source.

Images are uint8 RGB (H, W, 3) of one size; `outside_HW` is true where the picture must not change. The structural
similarity is the published one (Gaussian window of 11 px with sigma 1.5, population covariance) and is averaged over
the map eroded by the window's radius, so that no window reaches into the changed part.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from likeness.evaluation.metrics.registry import Measured, metric, not_measured

if TYPE_CHECKING:
    from likeness.evaluation.sample import Sample

AGAINST = "the base's image of the same prompt, seed and noise; edit: the source"
WINDOW_RADIUS = 5
OWN_BASE = not_measured("not_applicable: this is the base's own image")
NO_AGAINST = not_measured("no_reference: the image to compare with is missing")
Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def ssim_map(image_HWC: Image, against_HWC: Image) -> NDArray[np.float64]:
    """Structural similarity at each pixel (H, W), mean over the channels; must agree with skimage's Gaussian variant."""
    from skimage.metrics import structural_similarity

    found: Any = structural_similarity(
        image_HWC,
        against_HWC,
        channel_axis=2,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
        full=True,
    )
    return np.asarray(found[-1], np.float64).mean(axis=2)


def masked_ssim(image_HWC: Image, against_HWC: Image, outside_HW: Mask) -> float | None:
    """Mean similarity over `outside_HW`, eroded by the window's radius and without the image's rim; None if nothing is left."""
    import cv2

    if min(image_HWC.shape[:2]) < 2 * WINDOW_RADIUS + 1:
        return None
    kernel = np.ones((2 * WINDOW_RADIUS + 1,) * 2, np.uint8)
    eroded = cv2.erode(outside_HW.astype(np.uint8), kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0).astype(bool)
    return float(ssim_map(image_HWC, against_HWC)[eroded].mean()) if eroded.any() else None


def lab_of(image_HWC: Image) -> NDArray[np.float64]:
    """CIE L*a*b* (D65) of an sRGB image, (H, W, 3)."""
    from skimage.color import rgb2lab

    return rgb2lab(image_HWC)


class Colour(NamedTuple):
    """What a whole picture's CIE L*a*b* values come down to."""

    mean_lab: NDArray[np.float64]
    lightness_deviation: float


_COLOURS: dict[bytes, Colour] = {}
_COLOURS_KEPT = 4096


def colour_of(image_HWC: Image) -> Colour:
    """Mean colour and deviation of lightness, remembered by the picture's bytes: all checkpoints meet the same base."""
    key = hashlib.sha256(repr(image_HWC.shape).encode() + image_HWC.tobytes()).digest()
    if key not in _COLOURS:
        if len(_COLOURS) >= _COLOURS_KEPT:
            _COLOURS.clear()
        image_lab = lab_of(image_HWC)
        _COLOURS[key] = Colour(image_lab.reshape(-1, 3).mean(axis=0), float(image_lab[..., 0].std()))
    return _COLOURS[key]


def delta_e(first_lab: NDArray[np.float64], second_lab: NDArray[np.float64]) -> float:
    """CIEDE2000 between two colours."""
    from skimage.color import deltaE_ciede2000

    return float(deltaE_ciede2000(first_lab, second_lab))


def grain_of(image_HWC: Image) -> float:
    """Standard deviation of fine noise in grey levels (Immerkaer 1996): unchanged by flat, sloped and smoothly curved parts."""
    import cv2

    grey = cv2.cvtColor(image_HWC, cv2.COLOR_RGB2GRAY).astype(np.float64)
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float64)
    response = cv2.filter2D(grey, cv2.CV_64F, kernel)[1:-1, 1:-1]
    return float(math.sqrt(math.pi / 2) * np.abs(response).mean() / 6)


def shift_between(image_HWC: Image, against_HWC: Image) -> float:
    """Length of the shift between two images in px, to a tenth, by phase correlation of their grey values."""
    import cv2
    from skimage.registration import phase_cross_correlation

    grey = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float64) for image in (image_HWC, against_HWC)]
    window = np.outer(np.hanning(grey[0].shape[0]), np.hanning(grey[0].shape[1]))
    found = phase_cross_correlation(
        *[(one - one.mean()) * window for one in grey],
        upsample_factor=10,
        normalization=None,  # type: ignore[arg-type]
    )
    return float(np.hypot(*found[0]))


def against_of(sample: Sample) -> Image | Measured:
    """The image to compare with, or the null that says why there is none."""
    if sample.is_own_base:
        return OWN_BASE
    return NO_AGAINST if sample.against_HWC is None else sample.against_HWC


@metric("background_ssim", unit="-1..1", against=AGAINST, group="pixels")
def background_ssim(sample: Sample) -> Measured:
    """Structural similarity outside the grown person (edit: the stored mask, else the head)."""
    against = against_of(sample)
    if isinstance(against, Measured):
        return against
    if sample.outside_HW is None:
        return not_measured("no_face")
    value = masked_ssim(sample.image_HWC, against, sample.outside_HW)
    return not_measured("too_few: no background is left outside the person") if value is None else Measured(value)


@metric("shift_px", unit="px of the measured image", against=AGAINST, group="pixels", version=2)
def shift_px(sample: Sample) -> Measured:
    """How far the whole picture moved."""
    against = against_of(sample)
    if isinstance(against, Measured):
        return against
    if np.array_equal(sample.image_HWC, against):
        return Measured(0.0)
    if is_flat(sample.image_HWC) or is_flat(against):
        return not_measured("too_few: a picture of one colour shows no shift")
    return Measured(shift_between(sample.image_HWC, against))


def is_flat(image_HWC: Image) -> bool:
    """Whether a picture is of one colour."""
    return bool((image_HWC == image_HWC[0, 0]).all())


def region_delta_e(sample: Sample, regions: str) -> Measured:
    """CIEDE2000 between the median colours of a face's region in both images."""
    against = against_of(sample)
    if isinstance(against, Measured):
        return against
    if sample.face is None or sample.against_face is None:
        return not_measured("no_face")
    colours = []
    for image_HWC, face in ((sample.image_HWC, sample.face), (against, sample.against_face)):
        left, top, right, bottom = REGIONS[regions](*face.box)
        height, width = image_HWC.shape[:2]
        part = image_HWC[max(0, top) : min(height, bottom), max(0, left) : min(width, right)]
        if part.size == 0:
            return not_measured(f"no_{regions}: it lies outside the picture")
        colours.append(np.median(lab_of(part).reshape(-1, 3), axis=0))
    return Measured(delta_e(colours[0], colours[1]))


def skin_region(x0: float, y0: float, x1: float, y1: float) -> tuple[int, int, int, int]:
    """The middle of the face below the eyes: left, top, right, bottom in px."""
    width, height = x1 - x0, y1 - y0
    return round(x0 + 0.25 * width), round(y0 + 0.45 * height), round(x1 - 0.25 * width), round(y0 + 0.7 * height)


def hair_region(x0: float, y0: float, x1: float, y1: float) -> tuple[int, int, int, int]:
    """A band above the forehead: left, top, right, bottom in px."""
    width, height = x1 - x0, y1 - y0
    return round(x0 + 0.2 * width), round(y0 - 0.2 * height), round(x1 - 0.2 * width), round(y0 - 0.02 * height)


REGIONS = {"skin": skin_region, "hair": hair_region}


@metric("skin_delta_e", unit="CIEDE2000", against=AGAINST, group="pixels")
def skin_delta_e(sample: Sample) -> Measured:
    """Difference of the median skin colour."""
    return region_delta_e(sample, "skin")


@metric("hair_delta_e", unit="CIEDE2000", against=AGAINST, group="pixels")
def hair_delta_e(sample: Sample) -> Measured:
    """Difference of the median colour of a band above the forehead."""
    return region_delta_e(sample, "hair")


@metric(
    "colour_shift",
    unit="CIEDE2000",
    against=AGAINST,
    group="pixels",
    kinds=("subject", "bleed", "neutral"),
)
def colour_shift(sample: Sample) -> Measured:
    """Difference of the mean colour of the whole picture."""
    against = against_of(sample)
    if isinstance(against, Measured):
        return against
    return Measured(delta_e(colour_of(sample.image_HWC).mean_lab, colour_of(against).mean_lab))


def ratio(ours: float, theirs: float) -> Measured:
    """Ratio of two statistics; a null where the other image has none of it."""
    return (
        Measured(ours / theirs) if theirs > 1e-6 else not_measured("not_applicable: the image to compare with is flat")
    )


@metric("contrast", unit="ratio", against=AGAINST, group="pixels", kinds=("subject", "bleed", "neutral"))
def contrast(sample: Sample) -> Measured:
    """Standard deviation of lightness L* over that of the image to compare with."""
    against = against_of(sample)
    if isinstance(against, Measured):
        return against
    return ratio(colour_of(sample.image_HWC).lightness_deviation, colour_of(against).lightness_deviation)


@metric("grain", unit="ratio", against=AGAINST, group="pixels", kinds=("subject", "bleed", "neutral"))
def grain(sample: Sample) -> Measured:
    """Fine noise over that of the image to compare with."""
    against = against_of(sample)
    return against if isinstance(against, Measured) else ratio(grain_of(sample.image_HWC), grain_of(against))


@metric(
    "target_error",
    unit="mean squared error on 0..1",
    against="the pair's true target",
    group="pixels",
)
def target_error(sample: Sample) -> Measured:
    """Mean squared difference to the true target."""
    if sample.target_HWC is None:
        return not_measured("not_applicable: only an edit has a true target")
    difference = (sample.image_HWC.astype(np.float64) - sample.target_HWC) / 255
    return Measured(float((difference**2).mean()))


THUMBNAIL_PX = 32


def thumbnail(image_HWC: Image) -> NDArray[np.float64]:
    """Area-average an image to 32 × 32 px, values 0..1."""
    import cv2

    return cv2.resize(image_HWC, (THUMBNAIL_PX, THUMBNAIL_PX), interpolation=cv2.INTER_AREA).astype(np.float64) / 255


@metric(
    "diversity",
    unit="0..1",
    against="the other seeds of the same prompt and half",
    group="diversity",
)
def diversity(sample: Sample) -> Measured:
    """Mean root-mean-square difference of 32 px thumbnails to the other seeds' images."""
    if not sample.siblings_HWC:
        return not_measured("too_few: a prompt needs two seeds in its half")
    ours = thumbnail(sample.image_HWC)
    return Measured(float(np.mean([np.sqrt(((ours - thumbnail(other)) ** 2).mean()) for other in sample.siblings_HWC])))
