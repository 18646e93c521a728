"""What a model sees: the photo, upright and no larger than asked for, with the same bytes on every run."""

from __future__ import annotations

import base64
import io

from PIL import Image

from likeness.errors import UserError
from likeness.photos.images import ImageRef
from likeness.photos.load import decode_photo, read_photo_bytes
from likeness.store import sha256_of_bytes

JPEG_QUALITY = 90


def load_picture(image: ImageRef, max_side_px: int) -> Image.Image:
    """Read a photo as upright sRGB whose longer side is at most `max_side_px`; smaller ones are not enlarged.

    Raises PhotoError for a broken file, UserError when its bytes are no longer those that were indexed.
    """
    data = read_photo_bytes(image.path)
    if sha256_of_bytes(data) != image.sha256:
        raise UserError(
            f"{image.path}: the file of {image.id!r} changed after it was indexed. Run the same command again."
        )
    picture = Image.fromarray(decode_photo(data, image.path))
    scale = max_side_px / max(picture.size)
    if scale >= 1:
        return picture
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def data_uri(image: ImageRef, max_side_px: int) -> str:
    """The picture as a JPEG data URI, which every server reads; no metadata of the photo goes along."""
    buffer = io.BytesIO()
    load_picture(image, max_side_px).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
