"""Pictures as the metrics see them: generated images from the store, photos from disk, enlarged where they are small."""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from likeness.errors import UserError
from likeness.photos.images import ImageRef
from likeness.store import Store

Image = NDArray[np.uint8]
KEPT_PICTURES = 64


def enlarged(image_HWC: Image, shorter_side_px: int | None) -> Image:
    """Enlarge (bicubic) until the shorter side has this many px; larger images and None stay as they are."""
    height, width = image_HWC.shape[:2]
    if shorter_side_px is None or min(height, width) >= shorter_side_px:
        return image_HWC
    import cv2

    scale = shorter_side_px / min(height, width)
    size_px = (round(width * scale), round(height * scale))
    return np.asarray(cv2.resize(image_HWC, size_px, interpolation=cv2.INTER_CUBIC), np.uint8)


def png_bytes(image_HWC: Image) -> bytes:
    """Write an image as PNG; equal pixels give equal bytes."""
    from PIL import Image as Pillow

    buffer = io.BytesIO()
    Pillow.fromarray(image_HWC).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


class Pictures:
    """Loads pictures by sha256; the last few stay in memory."""

    def __init__(self, store: Store, images: Mapping[str, ImageRef], enlarge_to_px: int | None) -> None:
        self.store, self.images, self.enlarge_to_px = store, images, enlarge_to_px
        self.generated = lru_cache(KEPT_PICTURES)(self._generated)
        self.photo = lru_cache(8)(self._photo)

    def name_of(self, sha256: str) -> str:
        """What tells a picture, as it is given here, from all others: its content's sha256, and how far it is enlarged."""
        return sha256 if self.enlarge_to_px is None else f"{sha256} enlarged to {self.enlarge_to_px} px"

    def ref(self, sha256: str) -> ImageRef:
        """The photo with this content; UserError where the images table lacks it."""
        if sha256 not in self.images:
            raise UserError(
                f"the tables name an image with sha256 {sha256[:12]}… that the images table does not have. "
                "Run the pipeline from the photos stage again."
            )
        return self.images[sha256]

    def raw(self, sha256: str) -> Image:
        """A stored PNG as image_HWC, at its own size."""
        from PIL import Image as Pillow

        return np.array(Pillow.open(io.BytesIO(self.store.read_blob(sha256))).convert("RGB"))

    def _generated(self, sha256: str) -> Image:
        return enlarged(self.raw(sha256), self.enlarge_to_px)

    def _photo(self, sha256: str, size_px: tuple[int, int] | None = None) -> Image:
        """A photo, with `size_px` (width, height) covered and cropped as training does; enlarged as generated images are."""
        from likeness.training.buckets import cover_and_crop
        from likeness.training.encode import read_checked

        image_HWC = read_checked(self.ref(sha256))
        if size_px is not None:
            image_HWC = cover_and_crop(image_HWC, size_px)
        return enlarged(image_HWC, self.enlarge_to_px)

    def mask(self, mask_sha256: str, size_px: tuple[int, int]) -> NDArray[np.bool_]:
        """A stored mask (H, W), covered and cropped to `size_px` (width, height), then enlarged."""
        from PIL import Image as Pillow

        from likeness.training.buckets import cover_and_crop

        mask_HW = np.asarray(Pillow.open(io.BytesIO(self.store.read_blob(mask_sha256))).convert("L"))
        return enlarged(cover_and_crop(mask_HW, size_px), self.enlarge_to_px) > 127
