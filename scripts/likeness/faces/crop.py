"""Cut a padded square around a face, on whole pixels, never enlarged; and cut masks on the same grid.

A crop is a square of `side_px` of the photo whose upper left corner is (x0, y0) before it is turned by `angle_deg`
around its own centre; it is written at `size_px` <= `side_px`. What lies outside the photo repeats the photo's edge and
is counted in the border's share.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from likeness.config.faces import CropSettings
from likeness.errors import UserError
from likeness.faces.detector import Face

PNG_LEVEL = 1


@dataclass(frozen=True)
class CropGeometry:
    """Where a crop lies, in px of the photo; angle_deg is the clockwise head tilt that is undone; size_px is written."""

    x0: float
    y0: float
    side_px: float
    angle_deg: float
    size_px: int


def crop_geometry(face: Face, settings: CropSettings) -> CropGeometry:
    """Place the square: the longer side of the box plus the padding on each side, centred on the box."""
    x0, y0, x1, y1 = face.box
    side = max(2, round(max(x1 - x0, y1 - y0) * (1 + 2 * settings.padding)))
    angle = 0.0
    if settings.eyes_horizontal and face.landmarks_52 is not None:
        across = face.landmarks_52[1] - face.landmarks_52[0]
        angle = math.degrees(math.atan2(float(across[1]), float(across[0])))
    return CropGeometry(
        float(math.floor((x0 + x1 - side) / 2 + 0.5)),
        float(math.floor((y0 + y1 - side) / 2 + 0.5)),
        float(side),
        angle,
        min(settings.size_px, side),
    )


def cut(image: NDArray[np.uint8], geometry: CropGeometry, outside: int | None = None) -> NDArray[np.uint8]:
    """Cut an image (H, W, C) or mask (H, W) to (size, size[, C]); `outside` fills what lies outside, None repeats the edge."""
    side = int(geometry.side_px)
    turn = math.radians(geometry.angle_deg)
    centre = np.array([geometry.x0, geometry.y0]) + (side - 1) / 2
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    shift = centre - rotation @ np.full(2, (side - 1) / 2)
    upright = geometry.angle_deg == 0
    square = cv2.warpAffine(
        image,
        np.hstack([rotation, shift[:, None]]),
        (side, side),
        flags=(cv2.INTER_NEAREST if upright else cv2.INTER_LINEAR) | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE if outside is None else cv2.BORDER_CONSTANT,
        borderValue=outside or 0,
    )
    if geometry.size_px != side:
        square = cv2.resize(square, (geometry.size_px, geometry.size_px), interpolation=cv2.INTER_AREA)
    return np.asarray(square, np.uint8)


def border_share(geometry: CropGeometry, height_px: int, width_px: int) -> float:
    """Share of the crop, 0..1, that lies outside the photo."""
    inside = cut(np.full((height_px, width_px), 255, np.uint8), geometry, outside=0)
    return float(1 - inside.mean() / 255)


def cut_mask(mask_HW: NDArray[np.bool_], geometry: CropGeometry) -> NDArray[np.bool_]:
    """Cut a mask on the crop's grid; outside of the photo nothing is inside the mask."""
    return cut(mask_HW.astype(np.uint8) * 255, geometry, outside=0) > 127


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """Write RGB (H, W, 3) or grey (H, W) as PNG bytes that depend on the pixels only."""
    stored = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    done, buffer = cv2.imencode(".png", stored, [cv2.IMWRITE_PNG_COMPRESSION, PNG_LEVEL])
    assert done, "a PNG of uint8 pixels can always be written"
    return buffer.tobytes()


def decode_png(data: bytes, where: str) -> NDArray[np.uint8]:
    """Read PNG bytes as RGB (H, W, 3) or grey (H, W); raises UserError naming `where` if they are not a picture."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise UserError(f"{where}: the stored picture cannot be read. Delete it and run again.")
    return np.ascontiguousarray(image[..., ::-1] if image.ndim == 3 else image).astype(np.uint8)
