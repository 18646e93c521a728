"""Measures of a pair: what an edit changed that it should have left alone, and whether it changed anything.

Both views must lie on one grid (`regions.scaled_to`). Position and content are told apart: the shift is measured first,
and what compares pixels then looks at the source moved by it, so that a shifted pair is reported as shifted and not as
one with another background as well.

Axes: H rows, W columns, C colour channels (red, green, blue; uint8).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from likeness.quality.face import grey, lab
from likeness.quality.regions import HEAD_GROWTH, Image, Mask, View, cheek_region, grown, hair_region, head_region

WINDOW_RADIUS_PX = 5
"""Radius of the 11x11 window of structural similarity; pixels nearer to an excluded one are left out."""
UPSAMPLING = 20
"""The shift is found to a twentieth of a pixel."""
LEAST_BACKGROUND = 0.02
"""Share of the picture below which there is too little background to judge."""
LEAST_HAIR = 0.01
"""Hair smaller than this share of the face counts as no hair: it has no colour, and areas are compared to this."""
FLAT_BELOW = 1.0
"""Standard deviation (grey levels) of the fine structure below which a picture shows no shift."""
AGREE_ABOVE = 0.5
"""Correlation of fine structure above which two backgrounds show the same thing."""
WHOLE_AGREE_ABOVE = 0.8
"""The same for whole pictures, where the edit itself (a turned head) is part of what is compared."""
SOFT_EDGE_PX = 6


def edit_region(source: View, target: View) -> Mask:
    """The grown heads of both pictures: where an edit of a face may change pixels."""
    growth_px = round(HEAD_GROWTH * max(source.face_height_px, target.face_height_px))
    return grown(head_region(source) | head_region(target), growth_px)


def background_ssim(source_HWC: Image, target_HWC: Image, excluded_HW: Mask, border_px: int = 0) -> float | None:
    """Structural similarity averaged outside a region, -1..1; None when less than 2 % of the picture remains.

    The map (11x11 Gaussian window, sigma 1.5, mean of channels) is averaged only where no excluded pixel lies inside
    the window; zeroing the region instead would inflate it. Must agree with piq.ssim(downsample=False) without exclusion.
    border_px widens the frame that is left out.
    """
    if min(excluded_HW.shape) <= 2 * WINDOW_RADIUS_PX:
        return None
    window = np.ones((2 * WINDOW_RADIUS_PX + 1,) * 2, np.uint8)
    used = cv2.dilate(excluded_HW.astype(np.uint8), window) == 0
    frame = WINDOW_RADIUS_PX + border_px
    used[:frame] = used[-frame:] = False
    used[:, :frame] = used[:, -frame:] = False
    if used.mean() < LEAST_BACKGROUND:
        return None
    from skimage.metrics import structural_similarity

    map_HWC = structural_similarity(
        source_HWC.astype(np.float64),
        target_HWC.astype(np.float64),
        channel_axis=2,
        data_range=255,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )[1]
    return float(map_HWC[used].mean())


def shift_of(source_HWC: Image, target_HWC: Image, excluded_HW: Mask) -> tuple[float, float] | None:
    """How far the target lies right of and below the source, (x, y) in px, to a twentieth; None where nothing shows it.

    Fine structure outside the edited region is correlated (`skimage.registration.phase_cross_correlation`, plain
    correlation); where that is too plain to tell, that of the whole picture. Soft edges of the region and of the frame
    keep them from holding the pictures in place, and a shift counts only if the structures then agree.
    """
    shift = _shift_within(source_HWC, target_HWC, ~excluded_HW, AGREE_ABOVE)
    if shift is not None:
        return shift
    return _shift_within(source_HWC, target_HWC, np.ones_like(excluded_HW), WHOLE_AGREE_ABOVE)


def _shift_within(
    source_HWC: Image, target_HWC: Image, region_HW: Mask, agree_above: float
) -> tuple[float, float] | None:
    """The shift that the fine structure of a region shows; None where it is flat or does not agree."""
    height, width = region_HW.shape
    window_HW = np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1])
    window_HW = window_HW * cv2.GaussianBlur(region_HW.astype(np.float32), (0, 0), SOFT_EDGE_PX)
    fine = [_fine_structure(image_HWC) for image_HWC in (source_HWC, target_HWC)]
    weighted = [detail_HW * window_HW for detail_HW in fine]
    if min(float(detail.std()) for detail in weighted) < FLAT_BELOW * float(np.sqrt(np.mean(window_HW**2))):
        return None
    from skimage.registration import phase_cross_correlation

    offset, _, _ = phase_cross_correlation(weighted[0], weighted[1], upsample_factor=UPSAMPLING, normalization=None)  # type: ignore[arg-type]
    best: tuple[float, tuple[float, float] | None] = (agree_above, None)
    for shift, advantage in (((0.0, 0.0), 0.02), ((-float(offset[1]), -float(offset[0])), 0.0)):
        agreement = _correlation(moved(fine[0], shift) * window_HW, weighted[1]) + advantage
        best = max(best, (agreement, shift), key=lambda entry: entry[0])
    return best[1]


def _fine_structure(image_HWC: Image) -> NDArray[np.float64]:
    """Grey detail between 1 and 4 px, around 0."""
    values = grey(image_HWC)
    return (cv2.GaussianBlur(values, (0, 0), 1) - cv2.GaussianBlur(values, (0, 0), 4)).astype(np.float64)


def _correlation(first_HW: NDArray, second_HW: NDArray) -> float:
    """Cosine between two pictures of detail, -1..1."""
    return float((first_HW * second_HW).sum() / max(np.linalg.norm(first_HW) * np.linalg.norm(second_HW), 1e-9))


def moved(image_HWC: NDArray, shift_xy: tuple[float, float]) -> NDArray:
    """Move a picture of any kind right and down by a shift in px; its border is repeated."""
    matrix = np.array([[1, 0, shift_xy[0]], [0, 1, shift_xy[1]]], np.float32)
    size = image_HWC.shape[1], image_HWC.shape[0]
    return cv2.warpAffine(image_HWC, matrix, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def change(source_HWC: Image, target_HWC: Image, region_HW: Mask, border_px: int = 0) -> float:
    """Mean absolute change of grey, 0..1: over the picture or over the region, whichever is larger.

    The region (the grown head) keeps a small edit in a large picture from vanishing; both pictures are smoothed first,
    so that saving one as JPEG again is no change.
    """
    smooth = [cv2.GaussianBlur(grey(image), (0, 0), 1.5) for image in (source_HWC, target_HWC)]
    difference = np.abs(smooth[0] - smooth[1]) / 255
    if border_px:
        inner = (slice(border_px, -border_px),) * 2
        difference, region_HW = difference[inner], region_HW[inner]
    whole = float(difference.mean()) if difference.size else 0.0
    return max(whole, float(difference[region_HW].mean())) if region_HW.any() else whole


def colour_difference(first_lab: NDArray, second_lab: NDArray) -> float:
    """CIEDE2000 between two CIELab colours."""
    from skimage.color import deltaE_ciede2000

    return float(deltaE_ciede2000(first_lab.astype(np.float64), second_lab.astype(np.float64)))


def median_lab(image_HWC: Image, region_HW: Mask) -> NDArray | None:
    """Median CIELab colour of a region; None when it is empty."""
    return np.median(lab(image_HWC[region_HW]), axis=0) if region_HW.any() else None


def skin_delta_e(source: View, target: View) -> float | None:
    """CIEDE2000 between the skins of the cheeks; None without a face in both."""
    colours = [median_lab(view.image_HWC, cheek_region(view)) for view in (source, target)]
    return None if colours[0] is None or colours[1] is None else colour_difference(colours[0], colours[1])


def _hair_areas(source: View, target: View) -> list[tuple[Mask, float]] | None:
    """Hair of both, each with its share of the face's area; None where masks do not show hair."""
    found = []
    for view in (source, target):
        region = hair_region(view)
        if region is None:
            return None
        found.append((region, region.sum() / view.masks_HW["face"].sum()))
    return found


def hair_delta_e(source: View, target: View) -> float | None:
    """CIEDE2000 between the hair of both; None where one has none or masks do not show it."""
    hair = _hair_areas(source, target)
    if hair is None or min(share for _, share in hair) < LEAST_HAIR:
        return None
    first, second = (
        median_lab(view.image_HWC, region) for view, (region, _) in zip((source, target), hair, strict=True)
    )
    assert first is not None and second is not None
    return colour_difference(first, second)


def hair_area_ratio(source: View, target: View) -> float | None:
    """Larger hair area over the smaller, 1 or more; None where masks do not show it; baldness is 1 % of the face."""
    hair = _hair_areas(source, target)
    if hair is None:
        return None
    areas = [
        max(float(region.sum()), LEAST_HAIR * float(view.masks_HW["face"].sum()))
        for view, (region, _) in zip((source, target), hair, strict=True)
    ]
    return max(areas) / min(areas)


def pose_delta_deg(source: Sequence[float | None], target: Sequence[float | None]) -> float | None:
    """Angle of the rotation between two poses (yaw, pitch, roll in degrees), 0..180; None where a yaw is unknown.

    A pitch or roll that is unknown in one of them is left out of both.
    """
    if source[0] is None or target[0] is None:
        return None
    known = [a is not None and b is not None for a, b in zip(source, target, strict=True)]

    from scipy.spatial.transform import Rotation

    def rotation(pose: Sequence[float | None]) -> Rotation:
        return Rotation.from_euler(
            "YXZ", [(angle or 0.0) if use else 0.0 for angle, use in zip(pose, known, strict=True)], degrees=True
        )

    first, second = rotation(source), rotation(target)
    return math.degrees((first.inv() * second).magnitude())


def cosine(first: Sequence[float] | None, second: Sequence[float] | None) -> float | None:
    """Cosine between two embeddings, -1..1; None where one is missing, empty or of another length."""
    if first is None or second is None or len(first) != len(second):
        return None
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / length if length > 0 else None


def pixel_measures(source: View, target: View) -> dict[str, float | None]:
    """All that compares the pixels of a pair on one grid; shift_px in px of the photo (the target's)."""
    excluded = edit_region(source, target)
    shift = shift_of(source.image_HWC, target.image_HWC, excluded)
    aligned, border_px = source.image_HWC, 0
    background = ~excluded if not excluded.all() else ~np.zeros_like(excluded)
    if shift is not None and math.hypot(*shift) > 1 / UPSAMPLING:
        candidate = moved(source.image_HWC, shift)
        before, after = (
            float(np.abs(grey(image) - grey(target.image_HWC))[background].mean()) for image in (aligned, candidate)
        )
        if after < before:
            aligned, border_px = candidate, math.ceil(max(abs(shift[0]), abs(shift[1])))
    return {
        "background_ssim": background_ssim(aligned, target.image_HWC, excluded, border_px),
        "shift_px": None if shift is None else math.hypot(*shift) / target.scale,
        "skin_delta_e": skin_delta_e(source, target),
        "hair_delta_e": hair_delta_e(source, target),
        "hair_area_ratio": hair_area_ratio(source, target),
        "change": change(aligned, target.image_HWC, excluded, border_px),
    }
