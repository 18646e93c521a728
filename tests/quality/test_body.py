"""Framing by body keypoints: planted keypoints both ways, and a real ViTPose of random weights.

Oracle: the ViTPose classes of transformers used by hand.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.quality.test_measure import Folder, one_photo
from tests.tiny_body import tiny_body

from likeness.config.base import ModelSource
from likeness.config.quality import QualitySettings, QualityStage
from likeness.errors import UserError
from likeness.quality import body
from likeness.quality.body import ANKLES, HIPS, BodyModel, Keypoints, framing_by_keypoints, person_box
from likeness.quality.measure import body_model_of, measure_shard, slice_told
from likeness.quality.regions import View
from likeness.store import sha256_of_file

PHOTO = np.random.default_rng(0).integers(0, 255, (80, 60, 3), np.uint8)
NOSE = 0


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_body(tmp_path_factory.mktemp("body") / "tiny-body")


def planted(score: float = 0.9, at: tuple[float, float] = (30.0, 40.0), *seen: int) -> Keypoints:
    """The nose is seen; the keypoints of these numbers lie at a place with a score; all others are not seen."""
    points, scores = np.full((17, 2), 10.0), np.full(17, 0.05)
    scores[NOSE] = 0.9
    points[list(seen)], scores[list(seen)] = at, score
    return Keypoints(points, scores)


def model_of(source: Path | str, tmp_path: Path, **more: Any) -> BodyModel:
    return BodyModel("quality.body_pose", ModelSource(source=str(source), **more), tmp_path / "store", offline=True)


@pytest.mark.parametrize(
    ("seen", "framing"),
    [
        ((), "close"),
        ((5, 6, 13, 14), "close"),
        ((HIPS[0],), "half"),
        (HIPS, "half"),
        ((ANKLES[1],), "full"),
        ((*HIPS, *ANKLES), "full"),
    ],
)
def test_framing_follows_hips_and_ankles(seen: tuple[int, ...], framing: str) -> None:
    assert framing_by_keypoints(planted(0.9, (30.0, 40.0), *seen), 80, 60) == framing


@pytest.mark.parametrize(("part", "framing"), [(HIPS, "half"), (ANKLES, "full")])
def test_a_keypoint_counts_from_the_confidence_and_inside_the_frame(part: tuple[int, int], framing: str) -> None:
    least = body.LEAST_KEYPOINT_SCORE
    assert framing_by_keypoints(planted(least, (30.0, 40.0), *part), 80, 60) == framing
    assert framing_by_keypoints(planted(least - 0.001, (30.0, 40.0), *part), 80, 60) == "close"
    for inside in ((0.0, 0.0), (59.9, 79.9)):
        assert framing_by_keypoints(planted(0.9, inside, *part), 80, 60) == framing
    for outside in ((-0.1, 40.0), (60.0, 40.0), (30.0, -0.1), (30.0, 80.0)):
        assert framing_by_keypoints(planted(0.9, outside, *part), 80, 60) == "close"


def test_nobody_seen_tells_no_framing() -> None:
    assert framing_by_keypoints(Keypoints(np.full((17, 2), 10.0), np.full(17, 0.1)), 80, 60) is None


def test_person_box_is_around_the_mask_else_the_whole_picture() -> None:
    mask = np.zeros((80, 60), bool)
    assert person_box(View(PHOTO)) == person_box(View(PHOTO, masks_HW={"person": mask})) == (0, 0, 60, 80)
    mask[20:70, 10], mask[30, 10:41] = True, True
    assert person_box(View(PHOTO, masks_HW={"person": mask, "face": ~mask})) == (10, 20, 41, 70)


def test_keypoints_are_those_of_the_library(model_folder: Path, tmp_path: Path) -> None:
    from transformers import VitPoseForPoseEstimation, VitPoseImageProcessor

    model = model_of(model_folder, tmp_path)
    assert not model.loaded
    found = model.keypoints(PHOTO, (5.0, 10.0, 45.0, 70.0))
    processor = VitPoseImageProcessor.from_pretrained(model_folder)
    boxes = [[[5.0, 10.0, 40.0, 60.0]]]
    inputs = processor(images=Image.fromarray(PHOTO), boxes=boxes, return_tensors="pt")
    with torch.no_grad():
        output = VitPoseForPoseEstimation.from_pretrained(model_folder).eval()(**inputs)
    expected = processor.post_process_pose_estimation(output, boxes=boxes)[0][0]
    assert found.points_K2 == pytest.approx(expected["keypoints"].numpy(), abs=1e-4)
    assert found.scores_K == pytest.approx(expected["scores"].numpy(), abs=1e-5)
    assert model.loaded and np.ptp(found.points_K2) > 1


def test_a_model_of_several_data_sets_answers_for_coco(tmp_path: Path) -> None:
    found = model_of(tiny_body(tmp_path / "experts", experts=2), tmp_path).keypoints(PHOTO, (0.0, 0.0, 60.0, 80.0))
    assert found.points_K2.shape == (17, 2) and np.isfinite(found.scores_K).all()


def framings(folder: Folder, model: BodyModel) -> list[tuple[str | None, str | None]]:
    settings = QualitySettings(body_pose=model.source)
    rows = measure_shard(folder.images, folder.faces, folder.masks, settings, folder.store, body_model=model)
    return [(row["framing"], row["framing_by"]) for row in rows]


def two_photos(root: Path) -> Folder:
    """One photo with a face and masks, one without a face."""
    folder = Folder(root)
    folder.add("a", "photo", one_photo())
    folder.add("b", "photo", one_photo(1), face=False)
    return folder


def test_framing_is_told_by_keypoints_where_a_model_sees_somebody(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = two_photos(tmp_path)
    by_ratio = [(row["framing"], row["framing_by"]) for row in folder.measure()]
    assert by_ratio == [("close", "face ratio"), (None, None)]
    nobody = Keypoints(np.full((17, 2), 10.0), np.full(17, 0.1))
    answers = {"full": planted(0.9, (30.0, 40.0), *ANKLES), "half": planted(0.9, (30.0, 40.0), *HIPS), "ratio": nobody}
    found, boxes = {}, []
    for name, answer in answers.items():
        model = model_of(model_folder, tmp_path, revision=name)
        monkeypatch.setattr(model, "keypoints", lambda image, box, answer=answer: (boxes.append(box), answer)[1])
        found[name] = framings(folder, model)
    assert found == {
        "full": [("full", "body keypoints"), (None, None)],
        "half": [("half", "body keypoints"), (None, None)],
        "ratio": by_ratio,
    }
    rows, columns = np.nonzero(one_photo().view.masks_HW["person"])
    assert boxes == [(columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)] * 3
    assert folder.store.computed == {"quality": 2, "body": 3}, "a body model measures nothing else anew"


def test_keypoints_are_stored_by_picture_person_mask_and_weights(model_folder: Path, tmp_path: Path) -> None:
    folder = two_photos(tmp_path)
    first = framings(folder, model := model_of(model_folder, tmp_path))
    assert model.loaded and folder.store.computed["body"] == 1
    again = model_of(model_folder, tmp_path)
    assert framings(folder, again) == first and not again.loaded
    framings(folder, model_of(model_folder, tmp_path, revision="other"))
    assert folder.store.computed["body"] == 2
    folder.masks = [row for row in folder.masks if row["kind"] != "person"]
    framings(folder, again)
    assert folder.store.computed["body"] == 3


def test_a_full_store_needs_no_weights_of_a_known_revision(model_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model_folder, tmp_path / "copy")
    folder = two_photos(tmp_path)
    first = framings(folder, model_of(copy, tmp_path, revision="v1"))
    shutil.rmtree(copy)
    assert framings(folder, model_of(copy, tmp_path, revision="v1")) == first
    with pytest.raises(UserError, match=r"quality\.body_pose: the model folder .*copy lacks config\.json"):
        framings(folder, model_of(copy, tmp_path, revision="v2"))


def test_the_slice_names_the_model_and_tells_of_it_only_where_it_is_set(tmp_path: Path) -> None:
    stage = QualityStage.model_validate({"quality": {"body_pose": "x/y"}, "kind": "photos", "offline": False})
    model = body_model_of(stage, Folder(tmp_path).store)
    assert model is not None and (model.key, model.source.source, model.offline) == ("quality.body_pose", "x/y", False)
    assert slice_told(stage)["quality"]["body_pose"]["source"] == "x/y"
    plain = QualityStage(quality=QualitySettings(), kind="photos")
    assert body_model_of(plain, Folder(tmp_path).store) is None and plain.offline
    assert "body_pose" not in slice_told(plain)["quality"] and "offline" not in slice_told(plain)


def test_a_missing_file_or_hub_copy_is_named(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torn = shutil.copytree(model_folder, tmp_path / "torn")
    (torn / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"quality\.body_pose: the model folder .*torn lacks model\.safetensors\. Put"):
        framings(two_photos(tmp_path), model_of(torn, tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(
        UserError, match=r"quality\.body_pose: the weights of 'somebody/no-such-pose'.*`offline` is true"
    ):
        _ = model_of("somebody/no-such-pose", tmp_path).fingerprint


def test_other_weights_than_configured_are_an_error(model_folder: Path, tmp_path: Path) -> None:
    right = sha256_of_file(model_folder / "model.safetensors")
    assert model_of(model_folder, tmp_path, sha256=right).model is not None
    with pytest.raises(UserError, match=r"quality\.body_pose: the weights at .*model\.safetensors have sha256"):
        _ = model_of(model_folder, tmp_path, sha256="0" * 64).model


def test_torn_and_foreign_models_are_errors(model_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    torn = shutil.copytree(model_folder, tmp_path / "torn")
    (torn / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"quality\.body_pose: the files in the folder .*torn are not a ViTPose model"):
        _ = model_of(torn, tmp_path).model
    tensors = load_file(model_folder / "model.safetensors")
    tensors.pop("head.conv.weight")
    save_file(tensors, torn / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"torn lacks 1 tensors .*head\.conv\.weight"):
        _ = model_of(torn, tmp_path).model
    with pytest.raises(UserError, match="finds 12 keypoints, but the 17 of COCO"):
        model_of(tiny_body(tmp_path / "few", keypoints=12), tmp_path).keypoints(PHOTO, (0.0, 0.0, 60.0, 80.0))
