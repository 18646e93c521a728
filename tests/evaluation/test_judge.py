"""What scoring is told of its recogniser: found files start it once, and no other machine starts it for want of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from likeness.config.base import ModelSource
from likeness.config.evaluation import EvaluationSettings
from likeness.errors import UserError
from likeness.evaluation.judge import expect, is_found, remember
from likeness.evaluation.recognise import Recogniser
from likeness.faces.pack_folder import NEEDED_FILES
from likeness.store import Store


def settings(source: Path, backend: str = "insightface", **more: str) -> EvaluationSettings:
    return EvaluationSettings(recogniser_backend=backend, recogniser=ModelSource(source=str(source), **more))


def place(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in NEEDED_FILES["antelopev2"]:
        (folder / name).write_bytes(b"weights")


def scored_by(name: str, evaluation: Path) -> None:
    (evaluation / "base").mkdir(parents=True, exist_ok=True)
    (evaluation / "base" / "calibration.json").write_text(json.dumps({"recogniser": name}))


def test_files_are_found_as_the_backend_finds_them(tmp_path: Path) -> None:
    pack, weights = tmp_path / "antelopev2", tmp_path / "face.pt"
    assert not is_found(settings(pack)) and not is_found(settings(weights, "yolo"))
    place(pack)
    weights.write_bytes(b"weights")
    assert is_found(settings(pack)) and is_found(settings(weights, "yolo"))
    (pack / "glintr100.onnx").write_bytes(b"")
    assert not is_found(settings(pack)), "half unpacked"
    assert Recogniser(settings(pack), Store(tmp_path), offline=True).status.startswith("no_weights: ")
    for nothing_stands_in in (settings(tmp_path / "x", revision="1"), settings(tmp_path / "x", "opencv")):
        assert is_found(nothing_stands_in)
        assert Recogniser(nothing_stands_in, Store(tmp_path), offline=True).status == "ok"


def test_placed_files_start_scoring_once(tmp_path: Path) -> None:
    pack, evaluation = settings(tmp_path / "antelopev2"), tmp_path / "results" / "jane" / "evaluation"
    assert not expect(pack, evaluation)
    remember(False, pack, evaluation)
    scored_by("descriptor-hog-lbp-1", evaluation)
    assert not expect(pack, evaluation), "nothing has changed"
    place(tmp_path / "antelopev2")
    assert expect(pack, evaluation), "the files have come"
    remember(True, pack, evaluation)
    scored_by("arcface-1", evaluation)
    assert expect(pack, evaluation), "scored with them"


@pytest.mark.parametrize("had_files", [True, False])
def test_what_a_recogniser_has_scored_starts_nowhere_for_files_that_come_or_go(had_files: bool, tmp_path: Path) -> None:
    """The scheduling machine may have no files while those that score have them, and results go from machine to machine."""
    pack, evaluation = tmp_path / "antelopev2", tmp_path / "results" / "jane" / "evaluation"
    if had_files:
        place(pack)
    assert expect(settings(pack), evaluation) == had_files
    remember(had_files, settings(pack), evaluation)
    scored_by("insightface-0123456789ab", evaluation)
    assert expect(settings(pack), evaluation) == had_files
    assert not expect(settings(tmp_path / "another"), evaluation), "it has scored nothing yet"
    if not had_files:
        place(pack)
    assert expect(settings(pack), evaluation) == had_files


def test_levels_of_a_recogniser_are_not_used_by_what_stands_in_for_it(tmp_path: Path) -> None:
    pack = tmp_path / "antelopev2"
    absent = Recogniser(settings(pack), Store(tmp_path / "store"), offline=True)
    absent.check_calibration("descriptor-hog-lbp-1")
    with pytest.raises(UserError, match=r"scored by arcface-1, which is not to be found now .*evaluation.recogniser"):
        absent.check_calibration("arcface-1")
    place(pack)
    found = Recogniser(settings(pack), Store(tmp_path / "store"), offline=True)
    found.check_calibration("arcface-1")
    for stand_in in ("descriptor-hog-lbp-1", "opencv-0123456789ab"):
        with pytest.raises(UserError, match="Now they are: run once more with --forcerun score_base"):
            found.check_calibration(stand_in)
    Recogniser(settings(pack, "opencv"), Store(tmp_path / "store"), offline=True).check_calibration("opencv-01")
