"""The demo's photos: what is promised is there, the planted defects are what they are called, bytes repeat."""

from __future__ import annotations

import csv
import hashlib

import cv2
import numpy as np
import pytest
from PIL import Image

from likeness.miniature.astronaut import SHOTS, cut_out, draw_astronaut
from likeness.miniature.photos import (
    DEFECTS,
    SMILE_INSTRUCTION,
    SMILE_PAIRS,
    draw_pair,
    draw_robin,
    draw_robin_smiles,
    smile_scenes,
)
from likeness.miniature.scenes import sample_identities


def digest(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def test_robin_has_24_photos_of_three_formats_and_several_aspects(tmp_path):
    paths = draw_robin(tmp_path / "a", 0)
    sizes = {Image.open(path).size for path in paths}
    assert len(paths) == 24 and {path.suffix for path in paths} == {".jpg", ".png", ".webp"}
    assert len(sizes) >= 4 and min(min(size) for size in sizes) >= 256
    draw_robin(tmp_path / "b", 0)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    draw_robin(tmp_path / "c", 1)
    assert digest(tmp_path / "a") != digest(tmp_path / "c")


def test_smiles_are_flat_pairs_and_the_truth_names_each_defect(tmp_path):
    folder, truth = tmp_path / "smiles", tmp_path / "truth.csv"
    names = draw_robin_smiles(folder, truth, 0)
    rows = list(csv.DictReader(truth.open()))
    assert [row["pair"] for row in rows] == names
    assert sum(row["defect"] == "" for row in rows) == SMILE_PAIRS
    assert {row["defect"] for row in rows} - {""} == set(DEFECTS)
    assert {p.name for p in folder.iterdir()} == {f"{n}{e}" for n in names for e in ("_start.png", "_end.png", ".txt")}
    assert {(folder / f"{name}.txt").read_text() for name in names} == {SMILE_INSTRUCTION + "\n"}
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    draw_robin_smiles(folder, truth, 0)
    assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    unchanged = [row["pair"] for row in rows if row["defect"] == "unchanged"]
    for name in names:
        same = (folder / f"{name}_start.png").read_bytes() == (folder / f"{name}_end.png").read_bytes()
        assert same == (name in unchanged)


@pytest.mark.parametrize("defect", ["", *DEFECTS])
def test_a_defect_changes_what_it_is_called(defect):
    rng = np.random.default_rng(3)
    identity, scene = sample_identities(1, rng), smile_scenes(1, rng)
    start, end = draw_pair(identity, scene, defect, np.random.default_rng(0), 64)
    _, right = draw_pair(identity, scene, "", np.random.default_rng(0), 64)
    assert np.allclose(end, right) == (defect == "")
    assert np.allclose(start, end) == (defect == "unchanged")


def test_the_astronaut_album_holds_what_is_planted(tmp_path):
    folder, truth = tmp_path / "astronaut", tmp_path / "truth.csv"
    draw_astronaut(folder, truth)
    kinds = {row["file"]: row["kind"] for row in csv.DictReader(truth.open())}
    assert set(kinds) == {path.name for path in folder.iterdir()} and list(kinds.values()).count("") == len(SHOTS) >= 15
    named = {kind: name for name, kind in kinds.items() if kind}
    assert set(named) == {"blurred", "no_face", "duplicate", "near_duplicate", "other_person"}
    assert (folder / named["duplicate"]).read_bytes() == (folder / "astronaut-02.jpg").read_bytes()
    cascade = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_default.xml")
    grey = {name: cv2.imread(str(folder / name), cv2.IMREAD_GRAYSCALE) for name in kinds}
    found = {name: len(cascade.detectMultiScale(image, 1.1, 5)) for name, image in grey.items()}
    assert all(found[name] == (0 if kinds[name] == "no_face" else 1) for name in kinds), found
    sharpness = {name: cv2.Laplacian(image, cv2.CV_64F).var() for name, image in grey.items()}
    assert sharpness[named["blurred"]] < 0.1 * min(sharpness[n] for n, kind in kinds.items() if kind == "")


def test_the_matte_holds_face_and_suit_and_leaves_the_wall():
    import skimage.data

    matte = cut_out(skimage.data.astronaut())
    assert matte[120, 225] > 0.99 and matte[400, 200] > 0.99 and matte[60, 230] > 0.99
    assert matte[60, 60] < 0.01 and matte[100, 420] < 0.01 and matte[150, 285] < 0.01
