"""Crops: geometry by hand, rotation against a closed form, pixels copied exactly, PNG against Pillow."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from likeness.config.faces import CropSettings
from likeness.config.photos import LONGEST_SIDE_PX, PhotoSettings
from likeness.errors import UserError
from likeness.faces.crop import CropGeometry, border_share, crop_geometry, cut, cut_mask, decode_png, encode_png
from likeness.faces.detector import Face


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_square_around_the_box_with_padding():
    geometry = crop_geometry(Face((100, 50, 140, 100), None, 1), CropSettings(padding=0.45, size_px=512))
    assert (geometry.x0, geometry.y0, geometry.side_px) == (73, 28, 95)  # 50 * 1.9, centred on (120, 75)
    assert geometry.size_px == 95  # never enlarged
    assert crop_geometry(Face((100, 50, 140, 100), None, 1), CropSettings(padding=0.9)).side_px == 140


def test_upright_crop_copies_pixels():
    image = noise(200, 300)
    assert np.array_equal(cut(image, CropGeometry(30, 20, 64, 0, 64)), image[20:84, 30:94])


def test_crop_over_the_border_repeats_the_edge_and_is_counted():
    image = noise(50, 60)
    geometry = CropGeometry(-10, 0, 40, 0, 40)
    crop = cut(image, geometry)
    assert np.array_equal(crop[:, :10], np.repeat(image[:40, :1], 10, axis=1))
    assert border_share(geometry, 50, 60) == pytest.approx(10 / 40)
    assert border_share(CropGeometry(0, 0, 40, 0, 40), 50, 60) == 0


def test_the_longest_photo_that_a_setting_allows_can_be_cut() -> None:
    longest = np.zeros((64, LONGEST_SIDE_PX, 3), np.uint8)
    longest[:, -32:] = 255
    assert (cut(longest, CropGeometry(LONGEST_SIDE_PX - 32, 0, 32, 0, 32)) == 255).all()
    with pytest.raises(ValidationError, match="less than or equal to 32766"):
        PhotoSettings(max_side_px=LONGEST_SIDE_PX + 1)


@given(st.floats(-40, 40))
def test_eyes_become_level(angle):
    turn = np.deg2rad(angle)
    middle = np.array([100.0, 90.0])
    reach = 20 * np.array([np.cos(turn), np.sin(turn)])
    points = np.array([middle - reach, middle + reach, middle, middle, middle], np.float32)
    face = Face((60, 50, 140, 150), points, 1)
    geometry = crop_geometry(face, CropSettings(padding=0.45, eyes_horizontal=True))
    assert geometry.angle_deg == pytest.approx(angle, abs=0.01)
    image = np.zeros((200, 200, 3), np.uint8)
    for x, y in points[:2]:
        image[int(y) - 2 : int(y) + 3, int(x) - 2 : int(x) + 3] = 255
    rows, columns = np.nonzero(cut(image, geometry)[..., 0] > 100)
    left, right = columns < columns.mean(), columns > columns.mean()
    assert rows[left].mean() == pytest.approx(rows[right].mean(), abs=2)


def test_angle_is_zero_unless_asked_for():
    points = np.array([[80, 80], [120, 100], [100, 100], [90, 120], [110, 120]], np.float32)
    assert crop_geometry(Face((60, 50, 140, 150), points, 1), CropSettings()).angle_deg == 0


def test_mask_lies_on_the_crops_grid():
    image = np.zeros((100, 100, 3), np.uint8)
    image[30:60, 40:70] = 255
    geometry = CropGeometry(20, 10, 80, 0, 40)
    crop, mask = cut(image, geometry), cut_mask(image[..., 0] > 0, geometry)
    assert np.array_equal(mask, crop[..., 0] > 127)
    assert mask.sum() == 15 * 15
    assert not cut_mask(np.ones((50, 50), bool), CropGeometry(-10, 0, 40, 0, 40))[:, :10].any()


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_png_round_trip_and_pillow_agrees(shape):
    image = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    data = encode_png(image)
    assert np.array_equal(decode_png(data, "here"), image)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), image)
    assert data == encode_png(image.copy())


def test_what_is_no_png_is_said():
    with pytest.raises(UserError, match="here"):
        decode_png(b"nothing", "here")
