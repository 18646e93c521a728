"""The embedded cascades on the portrait that scikit-image ships; eye positions were read off the picture by hand."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from skimage import data

from likeness.config.faces import FaceSettings
from likeness.errors import UserError
from likeness.faces import haar
from likeness.faces.descriptor import KIND, describe
from likeness.faces.haar import HaarDetector, cascade_file, landmarks_from_eyes

LEFT_EYE, RIGHT_EYE, CHIN_Y, HAIRLINE_Y = (203, 101), (247, 104), 178, 80


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
    return data.astronaut()


@pytest.fixture(scope="module")
def detector(tmp_path_factory) -> HaarDetector:
    return HaarDetector(FaceSettings(backend="opencv"), tmp_path_factory.mktemp("store"), True, 1)


def test_one_face_with_both_eyes(detector, portrait):
    (face,) = detector.detect(portrait)
    assert face.landmarks_52 is not None
    assert np.allclose(face.landmarks_52[:2], [LEFT_EYE, RIGHT_EYE], atol=4)
    assert face.box[3] == pytest.approx(CHIN_Y, abs=6) and face.box[1] < HAIRLINE_Y
    assert face.pose is not None and face.pose.yaw_deg is None
    assert face.pose.roll_deg == pytest.approx(3.9, abs=2.5)
    assert face.embedding_kind == KIND and "csim" not in KIND and not KIND.startswith("arcface")


@pytest.mark.parametrize("scale", [0.6, 1.0, 2.5])
def test_box_scales_with_the_photo(detector, portrait, scale):
    resized = np.asarray(cv2.resize(portrait, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)
    faces = detector.detect(resized)
    best = max(faces, key=lambda face: face.score)
    assert np.allclose(np.array(best.box) / scale, [177, 64, 270, 178], atol=8)


def test_nothing_is_found_where_nobody_is(detector):
    assert detector.detect(np.full((300, 300, 3), 120, np.uint8)) == []
    assert detector.detect(np.asarray(data.coffee())) == []


def test_same_face_is_nearer_than_another(detector, portrait):
    (face,) = detector.detect(portrait)
    others = [portrait[20:480, 40:480], np.clip(portrait * 0.6, 0, 255).astype(np.uint8), portrait[:, ::-1].copy()]
    same = []
    for photo in others:
        again = max(detector.detect(photo), key=lambda found: found.score)
        assert face.embedding_D is not None and again.embedding_D is not None
        same.append(float(face.embedding_D @ again.embedding_D))
    # A patch of cloth stands for what is not her: the texture differs, the light does not.
    cloth = describe(portrait, (100, 300, 200, 400), None)
    assert cloth is not None and face.embedding_D is not None
    assert min(same) > 0.6 > 0.4 > float(cloth @ face.embedding_D)


def test_descriptor_divides_light_out(portrait, detector):
    (face,) = detector.detect(portrait)
    eyes = face.landmarks_52[:2]
    bright = describe(portrait, face.box, eyes)
    dark = describe((portrait * 0.5).astype(np.uint8), face.box, eyes)
    assert bright is not None and dark is not None and float(bright @ dark) > 0.95


def test_a_face_without_contrast_has_no_descriptor():
    assert describe(np.full((80, 80, 3), 90, np.uint8), (10, 10, 60, 60), None) is None


def test_landmarks_turn_with_the_eyes():
    level = landmarks_from_eyes(np.array([[40.0, 50.0], [80.0, 50.0]]))
    assert level[2] == pytest.approx([60, 50 + 0.572 * 40]) and level[3, 0] < level[4, 0]
    upright = landmarks_from_eyes(np.array([[50.0, 80.0], [50.0, 40.0]]))  # turned by -90 degrees
    assert upright[2] == pytest.approx([50 + 0.572 * 40, 60])


def test_missing_cascade_names_file_and_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(cv2.data, "haarcascades", f"{tmp_path}/")
    with pytest.raises(UserError, match=haar.FACE_XML) as caught:
        cascade_file(haar.FACE_XML)
    assert str(tmp_path) in str(caught.value)
