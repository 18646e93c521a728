"""Calibration, reference, recogniser and its stand-in, contact sheets. Oracle: plain loops over cosines."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from likeness.config.base import ModelSource
from likeness.config.faces import FaceSettings
from likeness.evaluation.calibration import (
    calibration_of,
    genuine_cosines,
    leave_one_out,
    subject_faces,
    subject_of_photos,
)
from likeness.evaluation.pictures import Pictures, enlarged, png_bytes
from likeness.evaluation.recognise import Recogniser, mean_direction
from likeness.evaluation.sample import Subject
from likeness.evaluation.sheet import thinned, write_images, write_sheet
from likeness.faces.detector import Face
from likeness.store import Store
from likeness.tables import SCORES, read_rows


def units(count, seed=0, width=8):
    vectors = np.random.default_rng(seed).normal(size=(count, width)) + 1
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_leave_one_out_compares_each_with_the_others_only():
    vectors = units(4)
    for at, found in enumerate(leave_one_out(vectors)):
        rest = sum(vector for other, vector in enumerate(vectors) if other != at)
        assert found == pytest.approx(vectors[at] @ rest / np.linalg.norm(rest))
    assert leave_one_out(vectors[:1]) == []


def test_training_photos_are_held_against_the_held_out_reference():
    held_out, training = units(2, 1), units(3, 2)
    reference = held_out.sum(axis=0) / np.linalg.norm(held_out.sum(axis=0))
    expected = [held_out[0] @ held_out[1], held_out[1] @ held_out[0], *(training @ reference)]
    assert genuine_cosines(held_out, training) == pytest.approx(expected)
    assert genuine_cosines(None, training) == pytest.approx(leave_one_out(training))
    assert genuine_cosines(None, None) == []


@pytest.mark.parametrize(("count", "known"), [(2, False), (3, True)])
def test_genuine_level_needs_three_photos(count, known, tmp_path):
    class Named:
        name = "toy"

    subject = Subject("character", "j4ne", "person", reference_D=mean_direction(units(2)), training_ND=units(count))
    found = calibration_of(subject, units(5, 9), Named())
    assert (found["genuine"] is not None) == known and found["n_genuine"] == count
    assert found["impostor"] == pytest.approx(np.mean(units(5, 9) @ subject.reference_D)) and found["n_impostor"] == 5
    assert set(found) == {"genuine", "impostor", "n_genuine", "n_impostor", "recogniser"}


def test_opposite_directions_have_no_mean():
    assert mean_direction(np.array([[1.0, 0.0], [-1.0, 0.0]])) is None
    assert mean_direction(np.zeros((0, 2))) is None


def test_absent_pack_is_replaced_by_the_descriptor_with_the_reason(project, tmp_path):
    changes = {"recogniser_backend": "insightface", "recogniser": ModelSource(source=str(tmp_path / "no-pack"))}
    recogniser = Recogniser(project.stage.evaluation.model_copy(update=changes), project.store(), offline=True)
    assert recogniser.status.startswith("no_weights:") and "no-pack" in recogniser.status
    assert "evaluation.recogniser" in recogniser.status and "faces." not in recogniser.status
    assert not recogniser.is_recogniser and recogniser.settings.backend == "opencv"


def test_faces_are_stored_and_the_detector_is_loaded_once(project):
    image = np.full((32, 32, 3), 128, np.uint8)
    first = Recogniser(project.stage.evaluation, project.store(), offline=True)
    assert first.face("a", lambda: image) is not None and first.face("b", lambda: image) is not None
    assert first.models_loaded == 1 and first.is_recogniser and first.name == "arcface-toy-1"
    second = Recogniser(project.stage.evaluation, project.store(), offline=True)
    assert second.face("a", lambda: pytest.fail("detected again")).box == first.face("a", lambda: image).box
    assert second.models_loaded == 0
    assert first.face("dark", lambda: image * 0) is None


def test_small_images_are_enlarged_and_large_ones_stay():
    image = np.zeros((10, 20, 3), np.uint8)
    assert enlarged(image, 40).shape == (40, 80, 3)
    assert enlarged(image, 10) is image and enlarged(image, None) is image


def test_generated_pictures_come_back_as_they_were(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    store = Store(tmp_path)
    sha256 = store.save_blob(png_bytes(image))
    assert np.array_equal(Pictures(store, {}, None).generated(sha256), image)
    assert Pictures(store, {}, 16).generated(sha256).shape == (16, 16, 3)


def test_sheet_has_a_cell_a_prompt_and_step_and_thins_many_steps(tmp_path):
    store = Store(tmp_path / "store")
    sha256 = store.save_blob(png_bytes(np.full((16, 16, 3), (255, 0, 0), np.uint8)))
    write_sheet(tmp_path / "sheet.jpg", ["a", "b"], ["0", "250"], {("a", "0"): sha256, ("b", "250"): sha256}, store)
    pixels = np.asarray(Image.open(io.BytesIO((tmp_path / "sheet.jpg").read_bytes()))).astype(int)
    red = (pixels[..., 0] > 200) & (pixels[..., 1] < 60)
    middle = pixels.shape[1] // 2 + 8
    quarters = [red[: red.shape[0] // 2, :middle], red[red.shape[0] // 2 :, middle:]]
    assert all(quarter.mean() > 0.5 for quarter in quarters) and red.mean() < 0.6
    assert thinned([str(at) for at in range(100)], 5) == ["0", "25", "50", "74", "99"] and thinned(["1"], 5) == ["1"]


def test_images_folder_holds_what_is_named_and_nothing_else(tmp_path):
    store = Store(tmp_path / "store")
    sha256 = store.save_blob(b"picture")
    (tmp_path / "images" / "gone").mkdir(parents=True)
    (tmp_path / "images" / "gone" / "old.png").write_bytes(b"old")
    write_images(tmp_path / "images", {"new/one": sha256}, store)
    assert [path.relative_to(tmp_path).as_posix() for path in sorted((tmp_path / "images").rglob("*"))] == [
        "images/new",
        "images/new/one.png",
    ]


@pytest.mark.slow
def test_programs_run_with_the_descriptor_and_say_why_nothing_is_chosen(project):
    """The programs themselves, with a model of noise in which the embedded detector finds no face."""
    changes = {"recogniser_backend": "opencv", "recogniser": ModelSource(source="none")}
    stage = project.stage.model_copy(update={"evaluation": project.stage.evaluation.model_copy(update=changes)})
    settings = json.dumps({"settings": stage.model_dump(mode="json"), "code": ""})
    choice = json.dumps({"settings": project.choice.model_dump(mode="json"), "code": ""})
    base, main, half = (project.evaluation(*parts) for parts in (("base",), ("main", "main"), ("report-half",)))
    common = ["--settings", settings, "--holdout", project.holdout, "--manifests", *project.manifests]
    common += ["--images", project.images, "--store", project.store().root]
    tables = [folder / "scores.parquet" for folder in (base, main, half)]
    calls = {
        "score_base.py": [*common, "--output-folder", base],
        "score_checkpoints.py": [*common, "--variant", "main", "--phase", "main", "--steps", project.steps],
        "score_finalists.py": [*common, "--scores", tables[1], "--checkpoints", project.steps, "--choice", choice],
        "choose_checkpoint.py": ["--settings", choice, "--scores", *tables],
    }
    calls["score_checkpoints.py"] += ["--base", base, "--output-folder", main]
    calls["score_finalists.py"] += ["--base", base, "--output-folder", half]
    calls["choose_checkpoint.py"] += [
        "--calibration",
        base / "calibration.json",
        "--output",
        project.results / "best.json",
    ]
    printed = ""
    for script, flags in calls.items():
        done = subprocess.run([sys.executable, f"scripts/{script}", *map(str, flags)], capture_output=True, text=True)
        assert done.returncode == 0, (script, done.stderr)
        printed += done.stdout
    assert "images to draw, about" in printed and "models loaded " in printed and "no finalists by rule" in printed
    best = json.loads((project.results / "best.json").read_text())
    assert best["variant"] is None and best["rule"].startswith("no choice: none of the metrics")
    statuses = {row["status"].split(":")[0] for row in read_rows(tables[1], SCORES) if row["metric"] == "csim"}
    assert statuses <= {"no_weights", "not_applicable"}


class GroupPhotos:
    """A recogniser that finds these faces, the largest first, as embeddings."""

    settings = FaceSettings()

    def __init__(self, photos):
        self.photos = photos

    def faces(self, sha256, load):
        return [
            Face((0.0, 0.0, side, side), None, 0.9, None, embedding, "toy") for embedding, side in self.photos[sha256]
        ]


def test_the_reference_is_the_subject_and_not_the_largest_face_of_a_group(tmp_path):
    rng = np.random.default_rng(0)
    own, friend = (vector / np.linalg.norm(vector) for vector in rng.normal(size=(2, 256)))

    def shot(of):
        vector = of + 0.5 * rng.normal(size=256) / 16
        return (vector / np.linalg.norm(vector)).astype(np.float32)

    photos = {f"t{number}": [(shot(own), 200.0)] for number in range(4)}
    photos |= {"h0": [(shot(friend), 220.0), (shot(own), 200.0)], "none": []}
    about = Subject("character", "j4ne", "person")
    pictures = Pictures(Store(tmp_path), {}, None)
    pictures.photo = lambda sha256: np.zeros((400, 400, 3), np.uint8)
    found = subject_of_photos(
        about, ["h0", "none"], ["t0", "t1", "t2", "t3"], pictures, GroupPhotos(photos), SimpleNamespace(body=None)
    )
    assert found.reference_D @ own > 0.8 > 0.3 > found.reference_D @ friend
    assert len(found.held_out_ND) == 1 and len(found.training_ND) == 4


def test_without_embeddings_the_largest_face_counts():
    faces = {"a": [Face((0.0, 0.0, 9.0, 9.0), None, 0.9, None, None, None)] * 2, "b": []}
    assert subject_faces(faces, 0.35) == {"a": faces["a"][0], "b": None}
