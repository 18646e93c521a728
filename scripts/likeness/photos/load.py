"""Read one photo into upright sRGB pixels, whatever the file holds.

Every stage reads photos through here, so that a box found by one stage means the same pixels in the next: EXIF
rotation is applied, colours are brought to sRGB, alpha lies over white, and 16-bit, CMYK, palette and grey files become
8-bit RGB. Only the formats below are tried (a file cannot pick an exotic decoder), and of an animation the first frame
counts.

Arrays are (H, W, 3) uint8, called `image_HWC`.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pillow_heif
from PIL import Image, ImageCms, ImageOps

from likeness.errors import TransientError, UserError

Converted = TypeVar("Converted")

Image.init()
pillow_heif.register_heif_opener()

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "HEIF", "AVIF", "GIF")
FORMAT_NAMES = "jpg, png, webp, bmp, tiff, heic, avif, gif"
MAX_PIXELS = 16384 * 16384 // 2
"""More pixels than this are never decoded: 134 megapixels, 400 MB as RGB."""
ORIENTATION_TAG = 0x0112
TURNED = frozenset({5, 6, 7, 8})


class PhotoError(UserError):
    """A photo that cannot be used; `status` is the short word for its row."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class PhotoHeader:
    """What the head of a file says: the format found in its bytes, and the size of the upright photo in px."""

    format: str
    width_px: int
    height_px: int


def load_photo(path: Path | str) -> np.ndarray:
    """Read a photo as `image_HWC`: uint8 RGB, upright, sRGB.

    Raises PhotoError, which names the photo, for files that are no image, truncated or too large; TransientError when
    the disk fails.
    """
    return decode_photo(read_photo_bytes(path), str(path))


def read_photo_bytes(path: Path | str) -> bytes:
    """Read a photo's bytes; PhotoError when it is missing or closed to us, TransientError when the disk fails."""
    try:
        return Path(path).read_bytes()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise PhotoError("missing", f"{path}: there is no such file. Put it back, or run again without it.") from error
    except PermissionError as error:
        raise PhotoError("unreadable", f"{path}: not readable. Allow reading (chmod +r), or remove it.") from error
    except OSError as error:
        raise TransientError(f"{path}: reading failed ({error.strerror}). Run again when the disk answers.") from error


def read_header(data: bytes, name: str) -> PhotoHeader:
    """Read format and upright size without decoding; raises PhotoError when the bytes are no image."""
    with open_image(data, name) as image:
        width, height = image.size
        if orientation_of(image) in TURNED and image.format != "TIFF":  # Pillow reports TIFF sizes upright
            width, height = height, width
        return PhotoHeader(format_of(image), width, height)


def decode_photo(data: bytes, name: str) -> np.ndarray:
    """Decode a photo's bytes as `image_HWC` (uint8 RGB, upright, sRGB); `name` is what errors call it.

    Raises PhotoError for bytes that are no image, truncated or too large.
    """
    return np.array(decode_image(data, name))


def decode_image(data: bytes, name: str) -> Image.Image:
    """Decode a photo's bytes as `decode_photo` does, but leave them a Pillow image, which saves two copies."""
    with open_image(data, name) as image:
        check_pixels(image.size, name)
        return to_srgb_upright(image, name)


def load_alpha(path: Path | str) -> np.ndarray | None:
    """Read how opaque each pixel of a photo is, upright, (H, W) uint8; None where all of it is, or it holds no alpha.

    Raises as `load_photo` does.
    """
    with open_image(read_photo_bytes(path), str(path)) as image:
        check_pixels(image.size, str(path))
        alpha = decoded(image, str(path), alpha_of)
    return None if alpha is None or alpha.getextrema() == (255, 255) else np.array(alpha)


def decode_small(data: bytes, name: str, least_px: int) -> tuple[Image.Image, tuple[int, int]]:
    """Decode a photo as `decode_image` does, but a JPEG at a half, quarter or eighth while both sides keep `least_px`.

    All its bytes are read, so damage is found as in the whole. Returns the image and the whole photo's upright (width,
    height) in px.
    """
    with open_image(data, name) as image:
        check_pixels(image.size, name)
        whole = image.size
        if image.draft(None, (least_px, least_px)) is None:
            decoded = to_srgb_upright(image, name)
            return decoded, decoded.size
        turned = orientation_of(image) in TURNED and upright(image) is not image
        return to_srgb_upright(image, name), (whole[1], whole[0]) if turned else whole


def to_srgb_upright(image: Image.Image, name: str) -> Image.Image:
    """Decode an opened image; raises as `decoded` does."""
    return decoded(image, name, to_srgb)


def decoded(image: Image.Image, name: str, convert: Callable[[Image.Image], Converted]) -> Converted:
    """Decode an opened image, turn it upright and convert it.

    Raises PhotoError for damaged pixels, and for pixels of a kind that cannot be read.
    """
    try:
        image.load()
    except Exception as error:  # decoders raise what they like on damaged data
        raise PhotoError(
            "truncated",
            f"{name}: the file is damaged or truncated ({first_words(error)}). Copy it again from where it came.",
        ) from error
    try:
        return convert(upright(image))
    except Exception as error:
        raise PhotoError(
            "not_an_image",
            f"{name}: pixels of kind {image.mode!r} cannot be read ({first_words(error)}). Save it as PNG or JPEG.",
        ) from error


def open_image(data: bytes, name: str) -> Image.Image:
    """Open bytes as an image without decoding them."""
    if not data:
        raise PhotoError("not_an_image", f"{name}: the file is empty. Copy it again from where it came.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise PhotoError("too_large", too_many_pixels(name)) from error
    except Exception as error:  # openers raise what they like on damaged heads
        raise PhotoError(
            "not_an_image", f"{name}: not an image that can be read. Allowed: {FORMAT_NAMES}. Convert or remove it."
        ) from error


def check_pixels(size: tuple[int, int], name: str) -> None:
    """Refuse images that would fill the memory; raises PhotoError."""
    if size[0] * size[1] > MAX_PIXELS:
        raise PhotoError("too_large", too_many_pixels(name))


def too_many_pixels(name: str) -> str:
    return f"{name}: more than {MAX_PIXELS // 10**6} megapixels, the largest that is read. Save a smaller copy."


def format_of(image: Image.Image) -> str:
    """Name of the format found in the bytes; a multi-picture JPEG is a jpeg."""
    found = (image.format or "").lower()
    return "jpeg" if found == "mpo" else found


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation 1..8; 1 where there is none or it cannot be read."""
    try:
        return int(image.getexif().get(ORIENTATION_TAG, 1))
    except Exception:  # damaged EXIF must not cost the photo
        return 1


def upright(image: Image.Image) -> Image.Image:
    """Turn and mirror as EXIF says; damaged EXIF leaves the image as it is."""
    if orientation_of(image) == 1:
        return image
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def to_srgb(image: Image.Image) -> Image.Image:
    """Bring any Pillow mode to 8-bit sRGB over white."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I") or image.mode == "F":
        grey = grey_to_8_bit(np.asarray(image))
        return Image.fromarray(grey).convert("RGB")
    if has_alpha(image):
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        colours = convert_profile(image.convert("RGB"), profile)
        white = Image.new("RGB", image.size, (255, 255, 255))
        return Image.composite(colours, white, alpha)
    if image.mode == "P":
        image = image.convert("RGB")
    return convert_profile(image, profile)


def has_alpha(image: Image.Image) -> bool:
    """Whether an image says how opaque its pixels are: in a channel, or by a colour that counts as transparent."""
    if image.mode.startswith(("I", "F")):  # 16-bit grey and floats: nothing converts their transparent grey
        return False
    return "transparency" in image.info or image.mode in ("RGBA", "RGBa", "LA", "La", "PA")


def alpha_of(image: Image.Image) -> Image.Image | None:
    """The alpha of an image as grey, 255 where it is opaque; None for an image without one."""
    return image.convert("RGBA").getchannel("A") if has_alpha(image) else None


def grey_to_8_bit(grey_HW: np.ndarray) -> np.ndarray:
    """Scale grey values to 0..255: floats up to 1 count as 0..1, whole numbers above 255 as 16 bit."""
    values = np.nan_to_num(grey_HW.astype(np.float64))
    top = values.max(initial=0.0)
    if np.issubdtype(grey_HW.dtype, np.floating):
        scale = 255.0 if top <= 1.0 else 1.0
    else:
        scale = 1.0 if grey_HW.dtype.itemsize > 2 and top <= 255 else 1 / 257
    return np.clip(np.rint(values * scale), 0, 255).astype(np.uint8)


def convert_profile(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert to sRGB by the embedded profile; one that is damaged, of another mode or sRGB itself converts plainly."""
    if image.mode == "LAB":
        return ImageCms.profileToProfile(
            image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
        )  # type: ignore[return-value]
    if profile and image.mode in ("RGB", "CMYK", "L"):
        with contextlib.suppress(ImageCms.PyCMSError, OSError, ValueError, TypeError):
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if image.mode == "RGB" and "srgb" in ImageCms.getProfileDescription(source).lower():
                return image
            converted = ImageCms.profileToProfile(
                image, source, ImageCms.createProfile("sRGB"), ImageCms.Intent.RELATIVE_COLORIMETRIC, "RGB"
            )
            if converted is not None:
                return converted
    return image if image.mode == "RGB" else image.convert("RGB")


def first_words(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:80]
