"""Aspect buckets: the exact sizes to which photos are brought, so that samples of equal size can share a micro-batch.

Every bucket has about the area of resolution²; sides are multiples of the bucket step and of one token. A photo goes to
the bucket of nearest aspect, is resized until it covers it, and loses what hangs over on both sides alike. Masks take
the same way, so that a mask pixel stays on its photo pixel; mirroring comes last, for both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from likeness.config.training import BucketSettings
from likeness.errors import UserError

if TYPE_CHECKING:
    import numpy as np

Size = tuple[int, int]
"""Width and height in px."""


def bucket_sizes(settings: BucketSettings, token_px: int) -> list[Size]:
    """List the buckets, sorted: sides are multiples of lcm(bucket_step_px, token_px), aspects up to max_aspect.

    Raises UserError where the step is too coarse for the resolution.
    """
    step_px = math.lcm(settings.bucket_step_px, token_px)
    if step_px > settings.resolution_px:
        raise UserError(
            f"buckets: sides are multiples of {step_px} px (bucket_step_px {settings.bucket_step_px}, one token is {token_px} px), "
            f"which is more than resolution_px {settings.resolution_px}. Lower bucket_step_px or raise resolution_px."
        )
    area_px = settings.resolution_px**2
    found: set[Size] = set()
    for count in range(1, math.ceil(settings.resolution_px * math.sqrt(settings.max_aspect) / step_px) + 1):
        long_px = count * step_px
        short_px = max(1, round(area_px / long_px / step_px)) * step_px
        if max(long_px / short_px, short_px / long_px) <= settings.max_aspect:
            found |= {(long_px, short_px), (short_px, long_px)}
    square_px = round(settings.resolution_px / step_px) * step_px
    return sorted(found | {(square_px, square_px)})


def assign_bucket(width_px: int, height_px: int, sizes: list[Size]) -> Size:
    """Choose the bucket whose aspect is nearest (as a ratio); ties go to the larger, then to the wider one."""
    aspect = math.log(width_px / height_px)
    return min(
        sizes, key=lambda size: (round(abs(aspect - math.log(size[0] / size[1])), 9), -size[0] * size[1], -size[0])
    )


def cover_and_crop(pixels: np.ndarray, size: Size) -> np.ndarray:
    """Resize (H, W) or (H, W, C) uint8 pixels until they cover `size` (width, height), then cut out the centre.

    Shrinking averages areas, enlarging is bicubic; the aspect changes by less than one pixel of rounding.
    """
    import cv2

    height_px, width_px = pixels.shape[:2]
    covered, left, top = placement((width_px, height_px), size)
    if covered != (width_px, height_px):
        smaller = covered[0] * covered[1] < width_px * height_px
        pixels = cv2.resize(pixels, covered, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)
    return pixels[top : top + size[1], left : left + size[0]]


def placement(photo: Size, size: Size) -> tuple[Size, int, int]:
    """The size to which a photo is brought so that it covers the bucket, and what is cut off at its left and top."""
    scale = max(size[0] / photo[0], size[1] / photo[1])
    covered = (max(size[0], round(photo[0] * scale)), max(size[1], round(photo[1] * scale)))
    return covered, (covered[0] - size[0]) // 2, (covered[1] - size[1]) // 2


def to_bucket(points: Sequence[float], photo: Size, size: Size) -> list[float]:
    """Bring x, y, x, y … of a photo to the bucket, as `cover_and_crop` brings its pixels: centres stay centres."""
    covered, left, top = placement(photo, size)
    scales, offsets = (covered[0] / photo[0], covered[1] / photo[1]), (left, top)
    return [(float(value) + 0.5) * scales[place % 2] - 0.5 - offsets[place % 2] for place, value in enumerate(points)]


PAIRED_LANDMARKS = (1, 0, 2, 4, 3)
"""Where each of the five points lies in a mirrored face: left and right eye, and corner of the mouth, change places."""


def mirror_landmarks(points: Sequence[float], width_px: int) -> list[float]:
    """Five points x, y, x, y … of a picture in the mirrored one, in which the right eye is on the other side."""
    pairs = [points[place : place + 2] for place in range(0, len(points), 2)]
    return [value for place in PAIRED_LANDMARKS for value in (width_px - 1 - pairs[place][0], pairs[place][1])]


def mirror_box(box: Sequence[float], width_px: int) -> list[float]:
    """Left, top, right, bottom in the mirrored picture; edges, unlike points, have no half pixel to give away."""
    left, top, right, bottom = box
    return [width_px - right, top, width_px - left, bottom]
