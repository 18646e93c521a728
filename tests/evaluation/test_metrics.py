"""Metrics on planted cases, both ways. Oracles: piq, torchmetrics, scikit-image, closed forms."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from scipy import ndimage

from likeness.config.metrics import DIRECTIONS, lower_is_better
from likeness.evaluation.metrics import REGISTRY, Measured
from likeness.evaluation.metrics.pixels import (
    delta_e,
    grain_of,
    hair_region,
    lab_of,
    masked_ssim,
    shift_between,
    skin_region,
    ssim_map,
)
from likeness.evaluation.prompts import GridPoint
from likeness.evaluation.sample import Sample, Subject


@pytest.fixture(scope="module")
def picture():
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 255, (12, 12, 3), np.uint8)
    return cv2.resize(coarse, (96, 96), interpolation=cv2.INTER_CUBIC)


def noisy(picture, spread, seed=1):
    noise = np.random.default_rng(seed).normal(0, spread, picture.shape)
    return np.clip(picture.astype(float) + noise, 0, 255).round().astype(np.uint8)


def test_every_metric_says_what_it_is():
    named = "csim likeness detected bleed_csim drift_dino diversity head_ratio background_ssim shift_px hair_delta_e"
    named += " skin_delta_e colour_shift contrast grain lpips clip_score style_similarity copying target_error"
    assert set(named.split()) | {"descriptor_cosine"} == set(REGISTRY)
    for metric in REGISTRY.values():
        assert metric.meaning.endswith(".") and metric.unit and metric.against and metric.kinds
    assert lower_is_better("target_error") and not lower_is_better("csim") and not lower_is_better("unknown")


def test_ssim_agrees_with_piq(picture):
    piq = pytest.importorskip("piq")
    other = noisy(picture, 12)
    tensors = [torch.from_numpy(image.copy()).permute(2, 0, 1)[None].double() / 255 for image in (picture, other)]
    oracle = float(piq.ssim(*tensors, data_range=1.0, downsample=False))
    inner = ssim_map(picture, other)[5:-5, 5:-5].mean()
    assert inner == pytest.approx(oracle, abs=1e-6)


def test_background_ssim_sees_the_background_and_not_the_person(picture):
    outside = np.ones((96, 96), bool)
    outside[30:60, 30:60] = False
    inside_changed, outside_changed = picture.copy(), picture.copy()
    inside_changed[32:58, 32:58] = 0
    outside_changed[:20] = 0
    assert masked_ssim(inside_changed, picture, outside) == pytest.approx(1.0, abs=1e-9)
    assert masked_ssim(outside_changed, picture, outside) < 0.9
    assert masked_ssim(picture, picture, np.zeros((96, 96), bool)) is None
    assert masked_ssim(picture[:8, :8], picture[:8, :8], outside[:8, :8]) is None


@pytest.mark.parametrize("shift", [(0.0, 0.0), (3.0, 0.0), (1.5, -2.5), (0.0, 0.4)])
def test_shift_is_found_to_a_fifth_of_a_pixel(picture, shift):
    grey = cv2.GaussianBlur(picture, (0, 0), 2).astype(float)
    moved = np.stack([ndimage.shift(grey[..., c], shift, mode="reflect") for c in range(3)], axis=-1)
    found = shift_between(np.clip(moved, 0, 255).astype(np.uint8), np.clip(grey, 0, 255).astype(np.uint8))
    assert found == pytest.approx(np.hypot(*shift), abs=0.2)


@pytest.mark.parametrize("spread", [2.0, 8.0, 20.0])
def test_grain_is_the_noise_that_was_planted_and_smooth_parts_add_none(spread):
    ramp = np.tile(np.linspace(80, 170, 256), (256, 1))
    grey = ramp + np.random.default_rng(2).normal(0, spread, ramp.shape)
    image = np.repeat(np.clip(grey, 0, 255).round().astype(np.uint8)[..., None], 3, axis=2)
    assert grain_of(image) == pytest.approx(spread, rel=0.1)
    assert grain_of(np.repeat(ramp.round().astype(np.uint8)[..., None], 3, axis=2)) < 0.6


def test_delta_e_is_the_published_example():
    # Sharma, Wu and Dalal (2005), pair 1.
    assert delta_e(np.array([50.0, 2.6772, -79.7751]), np.array([50.0, 0.0, -82.7485])) == pytest.approx(
        2.0425, abs=1e-4
    )
    assert lab_of(np.full((1, 1, 3), 255, np.uint8))[0, 0] == pytest.approx([100, 0, 0], abs=0.02)


def test_regions_of_the_face_lie_where_they_should():
    left, top, right, bottom = skin_region(100, 100, 200, 240)
    assert 100 < left < right < 200 and 160 < top < bottom < 200
    left, top, right, bottom = hair_region(100, 100, 200, 240)
    assert 100 < left < right < 200 and top < bottom < 100


class FakeSample:
    """Only what a metric under test asks for."""

    def __init__(self, **facts):
        self.recipe, self.is_own_base, self.face, self.against_face = "character", False, None, None
        self.calibration, self.has_recogniser, self.embedding_kind = {}, True, "arcface"
        self.against_HWC = self.target_HWC = self.reference_D = self.training_ND = self.held_out_ND = None
        self.siblings_HWC = []
        vars(self).update(facts)


class FakeFace:
    def __init__(self, embedding, box=(0.0, 0.0, 10.0, 10.0)):
        self.embedding_D, self.box = np.array(embedding, float), box


def measured(name, **facts):
    return REGISTRY[name].measure(FakeSample(**facts))


def test_likeness_is_0_at_the_impostor_and_1_at_the_genuine_level():
    reference = np.array([1.0, 0.0])
    calibration = {"genuine": 0.8, "impostor": 0.0, "n_genuine": 4, "n_impostor": 4}

    def likeness(cosine):
        face = FakeFace([cosine, np.sqrt(1 - cosine**2)])
        return measured("likeness", face=face, reference_D=reference, calibration=calibration).value

    assert [likeness(0.0), likeness(0.8), likeness(0.4)] == pytest.approx([0, 1, 0.5])


def test_identity_metrics_say_why_they_are_null():
    reference, face = np.array([1.0, 0.0]), FakeFace([1.0, 0.0])
    assert measured("csim", reference_D=reference).status == "no_face"
    assert measured("csim", face=face).status.startswith("no_reference")
    few = {"genuine": None, "impostor": 0.1, "n_genuine": 2, "n_impostor": 3}
    assert measured("likeness", face=face, reference_D=reference, calibration=few).status.startswith("too_few: 2")
    near = {"genuine": 0.42, "impostor": 0.4, "n_genuine": 5, "n_impostor": 3}
    assert measured("likeness", face=face, reference_D=reference, calibration=near).status.startswith("not_separable")
    assert measured("descriptor_cosine", face=face, reference_D=reference).status.startswith("not_applicable")


def test_copying_is_positive_for_a_copied_training_photo_and_not_for_a_new_one():
    training, held_out = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), np.array([[0.0, 0.0, 1.0]])
    facts = {"reference_D": np.array([0.0, 0.0, 1.0]), "training_ND": training, "held_out_ND": held_out}
    assert measured("copying", face=FakeFace([1.0, 0.0, 0.0]), **facts).value == pytest.approx(1.0)
    assert measured("copying", face=FakeFace([0.0, 0.0, 1.0]), **facts).value == pytest.approx(-1.0)


def test_target_error_is_the_mean_squared_difference():
    ours, target = np.full((4, 4, 3), 255, np.uint8), np.zeros((4, 4, 3), np.uint8)
    assert measured("target_error", image_HWC=ours, target_HWC=target) == Measured(1.0)
    assert measured("target_error", image_HWC=ours, target_HWC=ours) == Measured(0.0)
    assert measured("target_error", image_HWC=ours).status.startswith("not_applicable")


def test_diversity_is_0_for_equal_images_and_1_for_black_and_white():
    black, white = np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8)
    assert measured("diversity", image_HWC=black, siblings_HWC=[black]).value == 0
    assert measured("diversity", image_HWC=black, siblings_HWC=[white, black]).value == pytest.approx(0.5)
    assert measured("diversity", image_HWC=black).status.startswith("too_few")


def test_contrast_and_colour_shift_move_with_what_was_planted_only(picture):
    flat = (picture.astype(float) * 0.5 + 64).round().astype(np.uint8)
    assert measured("contrast", image_HWC=flat, against_HWC=picture).value == pytest.approx(0.5, abs=0.08)
    assert measured("contrast", image_HWC=picture, against_HWC=picture).value == 1.0
    red = np.clip(picture.astype(int) + np.array([40, 0, 0]), 0, 255).astype(np.uint8)
    assert measured("colour_shift", image_HWC=red, against_HWC=picture).value > 5
    assert measured("colour_shift", image_HWC=picture, against_HWC=picture).value == 0
    assert measured("grain", image_HWC=noisy(picture, 10), against_HWC=noisy(picture, 5, 4)).value > 1.5


def test_skin_and_hair_differences_see_their_own_region_only(picture):
    face = FakeFace([1.0], (20.0, 30.0, 76.0, 90.0))
    skin, hair = picture.copy(), picture.copy()
    left, top, right, bottom = skin_region(*face.box)
    skin[top:bottom, left:right] = (200, 60, 60)
    left, top, right, bottom = hair_region(*face.box)
    hair[top:bottom, left:right] = (30, 200, 30)
    facts = {"against_HWC": picture, "face": face, "against_face": face}
    assert (
        measured("skin_delta_e", image_HWC=skin, **facts).value
        > 10
        > measured("hair_delta_e", image_HWC=skin, **facts).value
    )
    assert measured("hair_delta_e", image_HWC=hair, **facts).value > 10
    assert measured("skin_delta_e", image_HWC=hair, **facts).value == 0


def test_own_base_is_never_compared_with_itself(picture):
    for name in ("background_ssim", "shift_px", "contrast", "grain", "colour_shift", "skin_delta_e"):
        found = measured(name, image_HWC=picture, against_HWC=picture, is_own_base=True)
        assert found.value is None and "base" in found.status


def test_every_name_that_settings_know_is_measured():
    assert set(REGISTRY) == set(DIRECTIONS)


def test_equal_pictures_did_not_move_and_flat_ones_show_nothing(picture):
    flat, other = np.full((64, 64, 3), 90, np.uint8), np.full((64, 64, 3), 91, np.uint8)
    assert measured("shift_px", image_HWC=flat, against_HWC=flat.copy()) == (0.0, "ok")
    assert measured("shift_px", image_HWC=picture, against_HWC=picture.copy()) == (0.0, "ok")
    found = measured("shift_px", image_HWC=flat, against_HWC=other)
    assert found.value is None and found.status.startswith("too_few: ")


@pytest.mark.parametrize(
    ("trigger", "prompt", "expected"),
    [
        ("j4ne", "j4ne woman in a garden", "woman in a garden"),
        ("j4ne", "a photo of J4ne, smiling", "a photo of, smiling"),
        ("[v]", "a photo of [v] in snow", "a photo of in snow"),
        ("ohwx!", "ohwx! person", "person"),
        ("j4ne", "j4nes house", "j4nes house"),
    ],
)
def test_the_plain_prompt_lacks_the_trigger_whatever_it_is(trigger, prompt, expected):
    point = GridPoint("a", "subject", prompt, 1, "select", 64, 64)
    facts = {"point": point, "subject": Subject("character", trigger, "person")}
    sample = Sample(
        image_sha256="",
        base_sha256=None,
        sibling_sha256s=(),
        is_base=False,
        pictures=None,
        recogniser=None,
        models=None,
        **facts,
    )
    assert sample.plain_prompt == expected
