"""The real insightface on a hand-made pack; what is missing is said before insightface could fetch it."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from tests.faces.toy_pack import RADIUS_PX, toy_photo

from likeness.config.faces import FaceSettings
from likeness.errors import UserError
from likeness.faces import pack_folder
from likeness.faces.insightface_pack import InsightfaceDetector
from likeness.faces.pack_folder import find_pack

pytestmark = pytest.mark.filterwarnings("ignore:`estimate` is deprecated:FutureWarning")


@pytest.fixture
def detector(toy_settings, tmp_path) -> InsightfaceDetector:
    return InsightfaceDetector(toy_settings, tmp_path, True, 1)


def test_finds_discs_and_tells_them_apart(detector):
    faces = sorted(detector.detect(toy_photo((80, 100, 1), (180, 152, 2))), key=lambda face: face.box)
    assert len(faces) == 2
    for face, (x, y) in zip(faces, [(80, 100), (180, 152)], strict=True):
        assert np.allclose(face.box, [x - RADIUS_PX, y - RADIUS_PX, x + RADIUS_PX, y + RADIUS_PX], atol=8)
        assert face.landmarks_52 is not None and face.landmarks_52[0, 0] < face.landmarks_52[1, 0]
        assert face.score > 0.9 and face.pose is None
    again = detector.detect(toy_photo((128, 128, 1), noise=5))[0]
    assert again.embedding_D is not None and np.linalg.norm(again.embedding_D) == pytest.approx(1, abs=1e-5)
    cosines = [float(again.embedding_D @ face.embedding_D) for face in faces]
    assert cosines[0] > 0.9 and cosines[1] < 0.5


def test_no_face_and_the_name_of_the_recogniser(detector):
    assert detector.detect(toy_photo()) == []
    kind = detector.detect(toy_photo((128, 128, 1)))[0].embedding_kind
    assert kind is not None and kind.startswith("arcface-recogniser-")


def test_min_score_reaches_the_detector(toy_settings, tmp_path):
    photo = toy_photo((128, 128, 1))
    score = InsightfaceDetector(toy_settings, tmp_path, True, 1).detect(photo)[0].score
    above = InsightfaceDetector(toy_settings.model_copy(update={"min_score": score + 1e-4}), tmp_path, True, 1)
    below = InsightfaceDetector(toy_settings.model_copy(update={"min_score": score - 1e-4}), tmp_path, True, 1)
    assert above.detect(photo) == [] and len(below.detect(photo)) == 1


@pytest.mark.parametrize("source", ["/no/such/pack", "models/mistyped", "bufalo_l", "buffalo_l", "./pack"])
@pytest.mark.parametrize("offline", [True, False])
def test_absent_pack_never_asks_the_network(source, offline, tmp_path, monkeypatch, no_network):
    monkeypatch.setattr(pack_folder, "packs_folder", lambda: tmp_path / "packs")
    with pytest.raises(UserError) as caught:
        InsightfaceDetector(FaceSettings.model_validate({"model": source}), tmp_path, offline, 1)
    said = str(caught.value)
    folder = source if "/" in source else str(tmp_path / "packs" / source)
    assert folder.removeprefix("./") in said and ".onnx" in said and "non-commercial" in said
    assert no_network == [] and not (tmp_path / "packs").exists()


def test_named_pack_lists_the_files_that_are_absent(tmp_path, monkeypatch):
    monkeypatch.setattr(pack_folder, "packs_folder", lambda: tmp_path)
    folder = tmp_path / "buffalo_l"
    folder.mkdir()
    (folder / "det_10g.onnx").write_bytes(b"x")
    (folder / "w600k_r50.onnx").write_bytes(b"")
    with pytest.raises(UserError, match=r"incomplete: w600k_r50\.onnx, 1k3d68\.onnx") as caught:
        find_pack("buffalo_l")
    assert str(folder) in str(caught.value)


def test_pack_unpacked_one_folder_too_deep(tmp_path, toy_pack):
    shutil.copytree(toy_pack, tmp_path / "antelopev2" / "antelopev2")
    with pytest.raises(UserError, match="one folder deeper"):
        find_pack(str(tmp_path / "antelopev2"))


@pytest.mark.parametrize(("removed", "said"), [("detector.onnx", "no detector"), ("recogniser.onnx", "no ArcFace")])
def test_pack_without_a_part(removed, said, tmp_path, toy_pack, toy_settings):
    folder = tmp_path / "pack"
    shutil.copytree(toy_pack, folder)
    (folder / removed).unlink()
    settings = FaceSettings.model_validate({"model": str(folder)})
    with pytest.raises(UserError, match=said) as caught:
        InsightfaceDetector(settings, tmp_path, True, 1)
    assert str(folder) in str(caught.value)


def test_torn_file_is_named(tmp_path, toy_pack):
    folder = tmp_path / "pack"
    shutil.copytree(toy_pack, folder)
    whole = (folder / "recogniser.onnx").read_bytes()
    (folder / "recogniser.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"recogniser\.onnx"):
        InsightfaceDetector(FaceSettings.model_validate({"model": str(folder)}), tmp_path, True, 1)


def test_fingerprint_follows_the_bytes_and_not_the_folder(tmp_path, toy_pack, toy_settings):
    first = InsightfaceDetector.fingerprint(toy_settings, tmp_path)
    moved = tmp_path / "elsewhere"
    shutil.copytree(toy_pack, moved)
    settings = FaceSettings.model_validate({"model": str(moved)})
    assert InsightfaceDetector.fingerprint(settings, tmp_path) == first
    with (moved / "detector.onnx").open("ab") as file:
        file.write(b"\0")
    assert InsightfaceDetector.fingerprint(settings, tmp_path) != first


def test_wrong_sha256_is_refused(tmp_path, toy_pack):
    settings = FaceSettings.model_validate({"model": {"source": str(toy_pack), "sha256": "0" * 64}})
    assert InsightfaceDetector.fingerprint(settings, tmp_path) == "0" * 64
    with pytest.raises(UserError, match="sha256"):
        InsightfaceDetector(settings, tmp_path, True, 1)
