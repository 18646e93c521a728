"""Measures of pairs against other libraries, closed forms and known shifts of a real photo."""

from __future__ import annotations

import math

import cv2
import numpy as np
import piq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage import data
from tests.quality.drawn import draw, even_scene, person

from likeness.quality import pairs
from likeness.quality.regions import View, ellipse

HEAD_BOX = (150.0, 20.0, 300.0, 215.0)


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
    return data.astronaut()


def test_ssim_agrees_with_piq(portrait: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    other = np.clip(portrait + rng.normal(0, 20, portrait.shape), 0, 255).astype(np.uint8)
    ours = pairs.background_ssim(portrait, other, np.zeros(portrait.shape[:2], bool))
    tensors = [torch.from_numpy(image).permute(2, 0, 1)[None].double() for image in (portrait, other)]
    theirs = piq.ssim(*tensors, data_range=255, downsample=False).item()
    assert ours == pytest.approx(theirs, abs=1e-5) and 0.2 < theirs < 0.9


def test_ssim_is_one_outside_an_edit_and_not_inflated_by_it(portrait: np.ndarray) -> None:
    head = ellipse(portrait.shape[:2], HEAD_BOX)
    edited = portrait.copy()
    edited[head] = 255 - edited[head]
    assert pairs.background_ssim(portrait, edited, head) == pytest.approx(1.0, abs=1e-9)
    edited[~head] = cv2.GaussianBlur(edited, (0, 0), 2)[~head]
    blurred = pairs.background_ssim(portrait, edited, head)
    zeroed = [np.where(head[..., None], 0, image).astype(np.uint8) for image in (portrait, edited)]
    inflated = pairs.background_ssim(zeroed[0], zeroed[1], np.zeros_like(head))
    assert blurred is not None and inflated is not None and blurred < inflated - 0.01


def test_ssim_is_null_without_background(portrait: np.ndarray) -> None:
    assert pairs.background_ssim(portrait, portrait, np.ones(portrait.shape[:2], bool)) is None
    assert pairs.background_ssim(portrait[:8, :8], portrait[:8, :8], np.zeros((8, 8), bool)) is None


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.3, 0.5), (-2.1, 1.3), (0.0, 3.0), (-4.2, 6.4), (12.0, 0.0)])
def test_shift_of_a_real_photo_is_found_in_spite_of_the_edit(portrait: np.ndarray, shift: tuple[float, float]) -> None:
    wide = ndimage.shift(portrait.astype(float), (shift[1], shift[0], 0), order=3, mode="nearest")
    target = np.clip(np.rint(wide), 0, 255).astype(np.uint8)
    head = ellipse(portrait.shape[:2], HEAD_BOX)
    target[head] = portrait[::-1, ::-1][head]
    found = pairs.shift_of(portrait, target, ellipse(portrait.shape[:2], (130, 0, 320, 235)))
    assert found == pytest.approx(shift, abs=0.11)


def test_nothing_shows_a_shift_of_flat_or_unlike_pictures() -> None:
    rng = np.random.default_rng(0)
    flat = np.full((96, 96, 3), 90, np.uint8)
    noise = [rng.integers(0, 255, (96, 96, 3), dtype=np.uint8) for _ in range(2)]
    nowhere = np.zeros((96, 96), bool)
    assert pairs.shift_of(flat, flat, nowhere) is None
    assert pairs.shift_of(noise[0], noise[1], nowhere) is None
    assert pairs.shift_of(noise[0], noise[0], nowhere) == (0.0, 0.0)


def test_a_shifted_real_pair_keeps_its_background(portrait: np.ndarray) -> None:
    target = np.roll(portrait, (5, -4), (0, 1))
    box = HEAD_BOX
    measures = pairs.pixel_measures(View(portrait, box), View(target, (146.0, 25.0, 296.0, 220.0)))
    assert measures["shift_px"] == pytest.approx(math.hypot(5, 4), abs=0.1)
    assert measures["background_ssim"] is not None and measures["background_ssim"] > 0.95
    assert measures["change"] is not None and measures["change"] < 0.003
    unaligned = pairs.background_ssim(portrait, target, np.zeros(portrait.shape[:2], bool))
    assert unaligned is not None and unaligned < 0.6


@pytest.mark.parametrize("quality", [95, 75])
def test_another_pass_through_jpeg_changes_nothing(portrait: np.ndarray, quality: int) -> None:
    coded = cv2.imencode(".jpg", portrait[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    again = np.ascontiguousarray(cv2.imdecode(coded, cv2.IMREAD_COLOR)[..., ::-1])
    head = ellipse(portrait.shape[:2], HEAD_BOX)
    assert pairs.change(portrait, again, head) < 0.003
    smiling = portrait.copy()
    cv2.ellipse(smiling, (228, 165), (26, 10), 0, 0, 180, (160, 60, 60), -1)
    assert pairs.change(portrait, smiling, head) > 0.003


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 200), st.integers(1, 55))
def test_change_of_a_uniform_step_is_the_step(level: int, step: int) -> None:
    flat = np.full((32, 32, 3), level, np.uint8)
    nowhere = np.zeros((32, 32), bool)
    assert pairs.change(flat, flat + np.uint8(step), nowhere) == pytest.approx(step / 255, abs=1e-4)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [  # Sharma, Wu, Dalal 2005, table 1
        ((50.0, 2.6772, -79.7751), (50.0, 0.0, -82.7485), 2.0425),
        ((50.0, -1.3802, -84.2814), (50.0, 0.0, -82.7485), 1.0),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
        ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
    ],
)
def test_colour_difference_is_ciede2000(first, second, expected: float) -> None:
    assert pairs.colour_difference(np.array(first), np.array(second)) == pytest.approx(expected, abs=1e-4)


def test_skin_and_hair_differences_are_those_of_the_painted_colours() -> None:
    from skimage.color import deltaE_ciede2000, rgb2lab

    rng = np.random.default_rng(4)
    identity, scene = person(rng), even_scene(rng).change(light_strength=0.0)
    other = identity.copy()
    other[:6] *= 0.6
    source, target = draw(identity, scene).view, draw(other, scene).view
    hair = deltaE_ciede2000(rgb2lab(identity[3:6] * 0.93), rgb2lab(other[3:6] * 0.93))
    skin = deltaE_ciede2000(rgb2lab(identity[:3]), rgb2lab(other[:3]))
    assert pairs.hair_delta_e(source, target) == pytest.approx(hair, abs=1.5)
    assert pairs.skin_delta_e(source, target) == pytest.approx(skin, abs=1.5)


def test_hair_area_ratio_counts_pixels_and_baldness() -> None:
    rng = np.random.default_rng(5)
    view = draw(person(rng), even_scene(rng)).view
    bald = View(view.image_HWC, view.box, view.landmarks_52, {**view.masks_HW, "head": view.masks_HW["face"]})
    hair = int((view.masks_HW["head"] & ~view.masks_HW["face"]).sum())
    ratio = pairs.hair_area_ratio(bald, view)
    assert ratio is not None and ratio > 5 and ratio <= hair / (0.01 * view.masks_HW["face"].sum())
    assert pairs.hair_delta_e(bald, view) is None
    assert pairs.hair_area_ratio(View(view.image_HWC, view.box), view) is None
    assert pairs.skin_delta_e(View(view.image_HWC), View(view.image_HWC)) is None


@settings(max_examples=50, deadline=None)
@given(*(st.floats(-80, 80) for _ in range(4)))
def test_pose_difference_about_one_axis_is_the_difference(yaw: float, other: float, pitch: float, roll: float) -> None:
    assert pairs.pose_delta_deg([yaw, 0, 0], [other, 0, 0]) == pytest.approx(abs(yaw - other), abs=1e-5)
    assert pairs.pose_delta_deg([yaw, pitch, roll], [yaw, pitch, roll]) == pytest.approx(0, abs=1e-5)
    # An unknown pitch is left out of both.
    assert pairs.pose_delta_deg([yaw, None, roll], [other, pitch, roll]) == pytest.approx(abs(yaw - other), abs=1e-5)
    assert pairs.pose_delta_deg([None, pitch, roll], [yaw, pitch, roll]) is None


def test_cosine_of_known_vectors() -> None:
    assert pairs.cosine([1, 0], [1, 1]) == pytest.approx(math.sqrt(0.5))
    assert pairs.cosine([0, 0], [1, 1]) is None
    assert pairs.cosine(None, [1, 1]) is None
    assert pairs.cosine([1, 0, 0], [1, 1]) is None
