"""The faces beside a manifest: of its samples only, by bytes, so that neither a name nor another photo moves them."""

from __future__ import annotations

from typing import Any

from tests.phases.fabricate import row_of

from likeness.phases.faces import faces_by_image, sample_faces
from likeness.tables import FACES, PAIRS, PHOTOS

POINTS = [float(value) for value in range(10)]


def photo(name: str, sha256: str, status: str = "ok") -> dict[str, Any]:
    return row_of(PHOTOS, id=name, path=f"{name}.jpg", sha256=sha256, repeats=1, status=status, reason="")


def face(name: str, left: float, role: str = "photo", **more: Any) -> dict[str, Any]:
    box = {"x0": left, "y0": 2.0, "x1": 30.0, "y1": 40.0}
    return row_of(
        FACES, **({"id": name, "role": role, "face": 0, "is_subject": True, "landmarks": POINTS, **box} | more)
    )


def test_the_subjects_face_of_each_sample_and_no_other() -> None:
    images = [photo("a", "A"), photo("b", "B"), photo("c", "C"), photo("d", "D")]
    faces = [face("a", 1.0), face("a", 9.0, face=1, is_subject=False), face("b", 3.0, landmarks=None)]
    faces += [face("c", 4.0), face("d", 5.0, is_subject=None)]
    found = sample_faces([{"image_sha256": sha256} for sha256 in ("D", "B", "A")], faces_by_image(images, faces))
    assert found == [
        {"image_sha256": "A", "box": [1.0, 2.0, 30.0, 40.0], "landmarks": POINTS},
        {"image_sha256": "B", "box": [3.0, 2.0, 30.0, 40.0], "landmarks": None},
    ]


def test_another_photo_or_another_name_changes_nothing() -> None:
    samples = [{"image_sha256": "A"}]
    before = sample_faces(samples, faces_by_image([photo("a", "A"), photo("b", "B")], [face("a", 1.0), face("b", 2.0)]))
    images = [photo("z", "A"), photo("b", "other"), photo("y", "A", status="duplicate")]
    after = faces_by_image(images, [face("z", 1.0), face("b", 7.0), face("y", 1.0)])
    assert sample_faces(samples, after) == before


def test_a_pairs_target_is_its_sample() -> None:
    pair = row_of(
        PAIRS, id="p", source_path="s", target_path="t", source_sha256="S", sha256="T", reference_paths=["r"],
        reference_sha256s=["R"], repeats=1, status="ok", reason="",
    )  # fmt: skip
    found = faces_by_image([pair], [face("p", 1.0, "source"), face("p", 5.0, "target")])
    assert {sha256: row["x0"] for sha256, row in found.items()} == {"S": 1.0, "T": 5.0}
    assert [row["box"][0] for row in sample_faces([{"image_sha256": "T"}], found)] == [5.0]
