"""Every kind of file becomes upright sRGB; every bad one an error that names it. Oracle: the pixels that were written."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
import skimage.io
from PIL import Image, ImageCms, ImageOps
from tests.photos.pictures import drawn

from likeness.photos import load
from likeness.photos.load import PhotoError, load_photo, read_header

PICTURE = drawn(1)
UNTURN = {  # how the stored pixels are made from the upright ones, by EXIF orientation (TIFF 6.0, tag 274)
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


def saved(tmp_path: Path, image: Image.Image, name: str, **options: object) -> Path:
    path = tmp_path / name
    image.save(path, **options)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "tiff"])
def test_exif_orientation_is_undone_pixel_by_pixel(tmp_path: Path, orientation: int, ending: str) -> None:
    stored = Image.fromarray(np.ascontiguousarray(UNTURN[orientation](PICTURE)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, stored, f"a.{ending}", exif=exif)
    np.testing.assert_array_equal(load_photo(path), PICTURE)
    header = read_header(path.read_bytes(), "a")
    assert (header.width_px, header.height_px) == (96, 64)


@pytest.mark.parametrize("ending", ["png", "bmp", "tiff"])
def test_lossless_formats_keep_every_pixel(tmp_path: Path, ending: str) -> None:
    np.testing.assert_array_equal(load_photo(saved(tmp_path, Image.fromarray(PICTURE), f"a.{ending}")), PICTURE)


@pytest.mark.parametrize(("ending", "name"), [("jpg", "jpeg"), ("webp", "webp"), ("heic", "heif"), ("avif", "avif")])
def test_lossy_formats_are_close_and_named_by_their_bytes(tmp_path: Path, ending: str, name: str) -> None:
    saved(tmp_path, Image.fromarray(PICTURE), f"a.{ending}", quality=95)
    path = (tmp_path / f"a.{ending}").rename(tmp_path / "misnamed.png")
    assert np.abs(load_photo(path).astype(int) - PICTURE).mean() < 6
    assert read_header(path.read_bytes(), "a").format == name


def test_rotated_heic_is_upright(tmp_path: Path) -> None:
    heif = pillow_heif.from_pillow(Image.fromarray(np.ascontiguousarray(UNTURN[6](PICTURE))))
    exif = Image.Exif()
    exif[0x0112] = 6
    heif.save(tmp_path / "a.heic", quality=95, exif=exif.tobytes())
    assert np.abs(load_photo(tmp_path / "a.heic").astype(int) - PICTURE).mean() < 6


def test_alpha_lies_over_white(tmp_path: Path) -> None:
    rgba = np.dstack([PICTURE, np.full(PICTURE.shape[:2], 255, np.uint8)])
    rgba[:, :32, 3], rgba[:, 32:64, 3] = 0, 128
    found = load_photo(saved(tmp_path, Image.fromarray(rgba), "a.png"))
    assert (found[:, :32] == 255).all()
    expected = PICTURE[:, 32:64] * (128 / 255) + 255 * (127 / 255)
    assert np.abs(found[:, 32:64] - expected).max() <= 1
    np.testing.assert_array_equal(found[:, 64:], PICTURE[:, 64:])


@pytest.mark.parametrize("mode", ["LA", "P", "1", "L"])
def test_grey_palette_and_bitmap_files(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(PICTURE).convert("L").convert(mode)
    np.testing.assert_array_equal(load_photo(saved(tmp_path, image, "a.png")), np.array(image.convert("RGB")))


def test_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([200, 0, 0, 0, 200, 0])
    image.putpixel((0, 0), 1)
    found = load_photo(saved(tmp_path, image, "a.png", transparency=0))
    assert tuple(found[0, 0]) == (0, 200, 0)
    assert tuple(found[4, 4]) == (255, 255, 255)


def test_16_bit_grey_and_colour(tmp_path: Path) -> None:
    grey = (np.arange(64 * 96, dtype=np.uint32).reshape(64, 96) * 10).astype(np.uint16)
    found = load_photo(saved(tmp_path, Image.fromarray(grey), "grey.png"))
    np.testing.assert_array_equal(found[..., 0], np.rint(grey / 257).astype(np.uint8))
    skimage.io.imsave(tmp_path / "colour.tiff", PICTURE.astype(np.uint16) * 257, check_contrast=False)
    np.testing.assert_array_equal(load_photo(tmp_path / "colour.tiff"), PICTURE)


def test_cmyk_jpeg_is_close_to_its_rgb(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(PICTURE).convert("CMYK"), "a.jpg", quality=98)
    assert np.abs(load_photo(path).astype(int) - PICTURE).mean() < 6


def test_a_colour_profile_is_converted_to_srgb(tmp_path: Path) -> None:
    """Oracle: LittleCMS run by hand from the profile to sRGB; a plain read would leave the pixels alone."""
    swapped = profile_with_linear_grey()
    image = Image.fromarray(PICTURE).convert("L")
    path = saved(tmp_path, image, "a.png", icc_profile=swapped)
    expected = ImageCms.profileToProfile(
        image,
        io.BytesIO(swapped),
        ImageCms.createProfile("sRGB"),
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        outputMode="RGB",
    )
    found = load_photo(path)
    np.testing.assert_array_equal(found, np.array(expected))
    assert np.abs(found[..., 0].astype(int) - np.array(image)).mean() > 10


def profile_with_linear_grey() -> bytes:
    """The smallest grey ICC profile: linear light, D50 white, written by hand after ICC.1:2010."""
    white = b"XYZ \0\0\0\0" + b"".join(int(v * 65536).to_bytes(4, "big") for v in (0.9642, 1.0, 0.8249))
    curve = b"curv\0\0\0\0" + (0).to_bytes(4, "big")
    text = b"text\0\0\0\0" + b"none\0"
    description = b"desc\0\0\0\0" + (5).to_bytes(4, "big") + b"grey\0" + bytes(4 + 4 + 2 + 1 + 67)
    tags = {b"desc": description, b"wtpt": white, b"kTRC": curve, b"cprt": text}
    table, body, offset = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        padded = data + bytes(-len(data) % 4)
        table += name + offset.to_bytes(4, "big") + len(data).to_bytes(4, "big")
        body, offset = body + padded, offset + len(padded)
    illuminant = b"".join(int(v * 65536).to_bytes(4, "big") for v in (0.9642, 1.0, 0.8249))
    head = offset.to_bytes(4, "big") + bytes(4) + b"\x02\x40\0\0" + b"mntrGRAYXYZ " + bytes(12) + b"acsp" + bytes(28)
    head += illuminant
    return head + bytes(128 - len(head)) + len(tags).to_bytes(4, "big") + table + body


def test_a_damaged_profile_costs_nothing(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(PICTURE), "a.png", icc_profile=b"no profile at all")
    np.testing.assert_array_equal(load_photo(path), PICTURE)


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "tiff"])
def test_of_an_animation_the_first_frame_counts(tmp_path: Path, ending: str) -> None:
    first, second = Image.new("RGB", (20, 10), (255, 0, 0)), Image.new("RGB", (20, 10), (0, 0, 255))
    options = {"lossless": True} if ending == "webp" else {}
    path = saved(tmp_path, first, f"a.{ending}", save_all=True, append_images=[second], **options)
    assert (load_photo(path) == (255, 0, 0)).all()


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "bmp", "tiff", "heic", "avif"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_truncated_files_are_named(tmp_path: Path, ending: str, share: float) -> None:
    path = saved(tmp_path, Image.fromarray(np.tile(PICTURE, (4, 4, 1))), f"half.{ending}")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(PhotoError, match=f"half.{ending}") as caught:
        load_photo(path)
    assert caught.value.status in ("truncated", "not_an_image")


def test_no_image_and_empty_file(tmp_path: Path) -> None:
    for name, data in {"text.jpg": b"hello", "empty.png": b"", "page.html.jpg": b"<html></html>" * 50}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(PhotoError, match=name) as caught:
            load_photo(tmp_path / name)
        assert caught.value.status == "not_an_image"
    with pytest.raises(PhotoError, match="no such file") as caught:
        load_photo(tmp_path / "gone.jpg")
    assert caught.value.status == "missing"


def test_a_decompression_bomb_is_refused_by_its_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = saved(tmp_path, Image.new("1", (20000, 20000)), "bomb.png")
    assert bomb.stat().st_size < 10**6
    with pytest.raises(PhotoError, match="megapixels") as caught:
        load_photo(bomb)
    assert caught.value.status == "too_large"
    picture = saved(tmp_path, Image.fromarray(PICTURE), "small.png")
    monkeypatch.setattr(load, "MAX_PIXELS", 96 * 64)
    assert load_photo(picture).shape == (64, 96, 3)
    monkeypatch.setattr(load, "MAX_PIXELS", 96 * 64 - 1)
    with pytest.raises(PhotoError):
        load_photo(picture)


def test_broken_exif_leaves_the_photo_as_it_is(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(PICTURE), "a.jpg", quality=95, exif=b"Exif\0\0broken")
    assert np.abs(load_photo(path).astype(int) - PICTURE).mean() < 6


def test_agrees_with_pillow_on_a_turned_jpeg(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path, Image.fromarray(PICTURE), "a.jpg", exif=exif)
    with Image.open(path) as image:
        np.testing.assert_array_equal(load_photo(path), np.array(ImageOps.exif_transpose(image)))
