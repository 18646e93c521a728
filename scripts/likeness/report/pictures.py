"""Pictures inside the page: small JPEGs as data, within one budget for the whole page."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from likeness.errors import UserError
from likeness.photos.load import load_photo
from likeness.store import Store

BUDGET_BYTES = 11_000_000
QUALITY = 78


class Pictures:
    """Makes thumbnails and counts their bytes; beyond the budget pictures are left out and counted."""

    def __init__(self, store: Store, budget_bytes: int = BUDGET_BYTES) -> None:
        self.store = store
        self.left_bytes = budget_bytes
        self.left_out = 0
        self._made: dict[tuple[str, str | None, int], str | None] = {}

    def of_photo(self, path: str, mask_sha256: str | None = None, side_px: int = 150) -> str | None:
        """A photo as it stands in the folder, with what lies outside the mask dimmed; None when it cannot be shown."""
        key = (path, mask_sha256, side_px)
        if key not in self._made:
            self._made[key] = self._photo(path, mask_sha256, side_px)
        return self._made[key]

    def of_image(self, sha256: str, side_px: int = 150) -> str | None:
        """A generated image from the store; small ones are enlarged without smoothing, as they are."""
        key = (sha256, None, side_px)
        if key not in self._made:
            try:
                image = Image.open(io.BytesIO(self.store.read_blob(sha256))).convert("RGB")
            except (UserError, OSError):
                self._made[key] = None
            else:
                self._made[key] = self._encode(image, side_px)
        return self._made[key]

    def _photo(self, path: str, mask_sha256: str | None, side_px: int) -> str | None:
        try:
            image_HWC = load_photo(Path(path))
        except (UserError, OSError):
            return None
        image = Image.fromarray(image_HWC)
        if mask_sha256 is not None:
            mask = Image.open(io.BytesIO(self.store.read_blob(mask_sha256))).convert("L").resize(image.size)
            weight_HW1 = 0.3 + 0.7 * np.asarray(mask, np.float32)[..., None] / 255
            image = Image.fromarray((np.asarray(image, np.float32) * weight_HW1).astype(np.uint8))
        return self._encode(image, side_px)

    def _encode(self, image: Image.Image, side_px: int) -> str | None:
        if max(image.size) > side_px:
            image.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=QUALITY)
        data = base64.b64encode(buffer.getvalue()).decode()
        if len(data) > self.left_bytes:
            self.left_out += 1
            return None
        self.left_bytes -= len(data)
        return f"data:image/jpeg;base64,{data}"
