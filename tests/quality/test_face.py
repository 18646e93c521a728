"""Measures of one face: closed forms, a second library, and the drawn world's truth."""

from __future__ import annotations

from collections import Counter

import cv2
import numpy as np
import pytest
from scipy import ndimage
from skimage import data
from tests.quality.drawn import SETTINGS, draw, even_scene, person

from likeness.miniature.scenes import facts_of, sample_identities, sample_scenes
from likeness.quality import background, face
from likeness.quality.measure import photo_measures
from likeness.quality.regions import (
    View,
    cheek_region,
    face_region,
    grown,
    hair_region,
    head_region,
    person_region,
    scaled_down,
    scaled_to,
)

WHOLE = (0.0, 0.0, 64.0, 64.0)


def test_lab_agrees_with_opencv() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    theirs = cv2.cvtColor((colours / 255).astype(np.float32), cv2.COLOR_RGB2LAB)
    assert np.abs(face.lab(colours) - theirs).max() < 0.5  # OpenCV's own tables are this coarse
    assert face.lab(np.array([[255, 255, 255], [0, 0, 0]], np.uint8))[:, 0] == pytest.approx([100, 0], abs=1e-3)


def test_sharpness_is_the_variance_of_the_laplacian_at_middle_grey() -> None:
    crop = np.repeat(np.random.default_rng(1).integers(60, 200, (40, 40, 1), dtype=np.uint8), 3, axis=2)
    values = crop[..., 0].astype(float)
    expected = ndimage.laplace(values)[1:-1, 1:-1].var() * (128 / values.mean()) ** 2
    assert face.sharpness(crop) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("exposure", [0.3, 0.6, 1.3])
def test_sharpness_does_not_hang_on_exposure(exposure: float) -> None:
    view = View(data.astronaut(), (172.0, 55.0, 278.0, 190.0))
    crop = face.face_crop(view, 256)
    assert crop is not None
    lit = np.clip(crop * exposure, 0, 255).astype(np.uint8)
    assert face.sharpness(lit) == pytest.approx(face.sharpness(crop), rel=0.25)


def test_blur_falls_below_the_default_limit_and_sharp_stays_above() -> None:
    photo, box = data.astronaut(), (172.0, 55.0, 278.0, 190.0)
    found = [
        face.sharpness(crop)
        for sigma in (0.01, 1.2, 2.5)
        if (crop := face.face_crop(View(cv2.GaussianBlur(photo, (0, 0), sigma), box), 256)) is not None
    ]
    assert found[0] > 300 and found[0] > found[1] > found[2] and found[1] < 60


def test_a_large_face_is_scaled_to_the_fixed_size_and_a_small_one_is_not() -> None:
    view = View(np.zeros((900, 900, 3), np.uint8), (100.0, 100.0, 700.0, 800.0))
    large, little = face.face_crop(view, 256), face.face_crop(View(view.image_HWC, (10.0, 10.0, 60.0, 70.0)), 256)
    assert large is not None and large.shape[:2] == (256, 256)
    assert little is not None and little.shape[:2] == (60, 60)
    assert face.face_crop(View(view.image_HWC), 256) is None
    assert face.face_crop(View(view.image_HWC, (930.0, 3.0, 960.0, 60.0)), 256) is None


def test_clipped_share_counts_black_and_burnt_pixels() -> None:
    image = np.full((64, 64, 3), 128, np.uint8)
    image[:16], image[16:24] = 0, 255
    everywhere = {"face": np.ones((64, 64), bool)}
    assert face.clipped_share(View(image, WHOLE, masks_HW=everywhere)) == pytest.approx(24 / 64)
    assert face.clipped_share(View(image)) is None


def test_brightness_of_grey_is_its_lightness() -> None:
    view = View(np.full((64, 64, 3), 119, np.uint8), WHOLE)
    assert face.brightness(view) == pytest.approx(50.03, abs=0.2)


@pytest.mark.parametrize(
    ("fraction", "word"), [(0.5, "close"), (0.331, "close"), (0.33, "half"), (0.14, "half"), (0.139, "full")]
)
def test_framing_at_its_borders(fraction: float, word: str) -> None:
    assert face.framing_by_face_ratio(fraction) == word


@pytest.mark.parametrize(
    ("yaw", "word"), [(0.0, "front"), (12.0, "front"), (12.1, "right"), (-12.0, "front"), (-12.1, "left"), (None, None)]
)
def test_pose_at_its_borders(yaw: float | None, word: str | None) -> None:
    assert face.pose_of(yaw) == word


@pytest.mark.parametrize("framing", ["close", "half"])
def test_words_agree_with_what_was_drawn(framing: str) -> None:
    rng = np.random.default_rng(11)
    scenes, identities = sample_scenes(60, rng, framing), sample_identities(60, rng)
    right: Counter[str] = Counter()
    for index in range(60):
        truth = facts_of(scenes, index)
        view = draw(identities[index], scenes.take(index), size_px=128).view
        measures = photo_measures(view, SETTINGS)
        for name in ("framing", "light", "background"):
            right[name] += measures[name] == getattr(truth, name)
    assert right["light"] >= 52 and right["background"] >= 58, right
    assert right["framing"] >= 58, right


def test_light_features_tell_sides_apart() -> None:
    rng = np.random.default_rng(2)
    identity, scene = person(rng), even_scene(rng)
    left, right = (
        face.light_features(draw(identity, scene.change(light_direction=side, light_strength=0.9)).view)
        for side in (-1.0, 1.0)
    )
    assert left is not None and right is not None
    assert left[1] > 5 and right[1] < -5
    assert face.light_features(View(np.zeros((8, 8, 3), np.uint8))) is None


def test_a_mixed_or_hidden_background_has_no_name() -> None:
    rng = np.random.default_rng(3)
    drawn = draw(person(rng), even_scene(rng).with_background("blue"))
    assert background.background_colour(drawn.view) == "blue"
    noise = rng.integers(0, 255, drawn.view.image_HWC.shape, dtype=np.uint8)
    image = np.where(drawn.view.masks_HW["person"][..., None], drawn.view.image_HWC, noise)
    assert background.background_colour(View(image, drawn.view.box, masks_HW=drawn.view.masks_HW)) is None
    hidden = {"person": np.ones(noise.shape[:2], bool)}
    assert background.background_colour(View(image, drawn.view.box, masks_HW=hidden)) is None
    assert background.background_histogram(View(image, drawn.view.box, masks_HW=hidden), 4) is None


@pytest.mark.parametrize("bins", [2, 4, 7])
def test_histogram_sums_to_one_and_keeps_the_mean_colour(bins: int) -> None:
    image = np.random.default_rng(0).integers(64, 192, (40, 40, 3), dtype=np.uint8)
    histogram = background.background_histogram(View(image), bins)
    assert histogram is not None and sum(histogram) == pytest.approx(1)
    centres = (np.arange(bins) + 0.5) / bins
    cube = np.array(histogram).reshape(bins, bins, bins)
    if bins > 2:  # with two bins, colours beyond the centres are clamped
        for axis in range(3):
            others = tuple(other for other in range(3) if other != axis)
            assert cube.sum(axis=others) @ centres == pytest.approx(image[..., axis].mean() / 255, abs=0.01)


def test_regions_stand_in_for_missing_masks() -> None:
    rng = np.random.default_rng(6)
    drawn = draw(person(rng), even_scene(rng)).view
    bare = View(drawn.image_HWC, drawn.box)
    stand_ins = {"face": face_region(bare), "head": head_region(bare), "person": person_region(bare)}
    for kind, region in stand_ins.items():
        true = drawn.masks_HW[kind]
        assert (region & true).sum() / (region | true).sum() > 0.6, kind
    assert hair_region(bare) is None
    cheeks = cheek_region(bare)
    assert cheeks.any() and not (cheeks & ~face_region(bare)).any()


def test_growing_agrees_with_scipy() -> None:
    mask = np.random.default_rng(0).uniform(size=(30, 30)) > 0.98
    rows, columns = np.ogrid[-4:5, -4:5]
    assert np.array_equal(grown(mask, 4), ndimage.binary_dilation(mask, rows**2 + columns**2 <= 16))
    assert grown(mask, 0) is mask


def test_scaling_keeps_geometry() -> None:
    rng = np.random.default_rng(7)
    view = draw(person(rng), even_scene(rng)).view
    half = scaled_down(view, 128)
    assert half.size == (128, 128) and half.scale == pytest.approx(0.5)
    assert half.box == pytest.approx([value / 2 for value in view.box or ()])
    assert half.masks_HW["face"].mean() == pytest.approx(view.masks_HW["face"].mean(), abs=0.01)
    assert scaled_down(view, 999) is view and scaled_to(view, 256, 256) is view
