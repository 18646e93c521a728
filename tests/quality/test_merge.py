"""Facts about the set: lights and backgrounds are counted right, one face a photo, leave one out against brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.phases.fabricate import row_of
from tests.quality.drawn import SETTINGS, draw, even_scene, person

from likeness.config.quality import QualitySettings
from likeness.quality import merge
from likeness.quality.measure import photo_measures
from likeness.quality.merge import clusters, leave_one_out_cosines, merge_quality, near_duplicate_ranks
from likeness.tables import FACES, PHOTOS, QUALITY

LIGHTS: dict[str, dict[str, float]] = {
    "even": {"light_direction": 0.0, "light_strength": 0.2, "brightness": 1.0},
    "left": {"light_direction": -1.0, "light_strength": 0.9, "brightness": 1.0},
    "dim": {"light_direction": 0.0, "light_strength": 0.2, "brightness": 0.45},
}


def measured_set(lights: list[str], seed: int) -> list[dict[str, Any]]:
    """Photos of one person under the given lights, in any pose, framing, clothes and place."""
    rng = np.random.default_rng(seed)
    identity, rows = person(rng), []
    for index, light in enumerate(lights):
        scene = even_scene(rng, ("close", "half")[index % 2]).change(yaw_deg=rng.uniform(-20, 20), **LIGHTS[light])
        measures = photo_measures(draw(identity, scene).view, SETTINGS)
        rows.append(row_of(QUALITY, id=f"p{index:02d}", face=0, status="ok", reason="", **measures))
    return rows


def merged(rows: list[dict[str, Any]], **images: dict[str, Any]) -> list[dict[str, Any]]:
    photos = [
        row_of(PHOTOS, id=row["id"], status="ok", reason="", **({"sha256": row["id"]} | images.get(row["id"], {})))
        for row in rows
    ]
    faces = [row_of(FACES, id=row["id"], role="photo", face=0, is_subject=True, embedding_kind="k") for row in rows]
    return merge_quality(rows, photos, faces, QualitySettings())


@pytest.mark.parametrize("seed", range(6))
def test_twelve_photos_under_one_light_count_one_light(seed: int) -> None:
    found = {row["light_cluster"] for row in merged(measured_set(["even"] * 12, seed))}
    assert found == {0}


@pytest.mark.parametrize("seed", range(6))
def test_three_planted_lights_count_three(seed: int) -> None:
    lights = ["even", "left", "dim"] * 4
    rows = merged(measured_set(lights, seed))
    pairs = {(light, row["light_cluster"]) for light, row in zip(lights, rows, strict=True)}
    assert len(pairs) == 3 and {cluster for _, cluster in pairs} == {0, 1, 2}


def test_backgrounds_are_counted() -> None:
    rng = np.random.default_rng(0)
    identity, rows = person(rng), []
    names = ["white", "blue", "green"] * 3
    for index, name in enumerate(names):
        view = draw(identity, even_scene(rng).with_background(name)).view
        rows.append(row_of(QUALITY, id=f"p{index}", face=0, status="ok", reason="", **photo_measures(view, SETTINGS)))
    found = [row["background_cluster"] for row in merged(rows)]
    assert found == [0, 1, 2] * 3


def test_clusters_are_numbered_by_size_then_by_the_smallest_hash_and_gaps_stay_null() -> None:
    features = [[0.0, 0.0], None, [9.0, 9.0], [0.1, 0.0], [9.0, 9.1], [5.0], [40.0, 0.0], [9.1, 9.0]]
    assert clusters(features, list("abcdefgh"), 1.0, "euclidean") == [1, None, 0, 1, 0, None, 2, 0]
    assert clusters(features[:6], list("abcdef"), 1.0, "euclidean") == [0, None, 1, 0, 1, None]
    assert clusters(features[:6], list("dbacef"), 1.0, "euclidean") == [1, None, 0, 1, 0, None]
    assert clusters([None, None], ["a", "b"], 1.0, "euclidean") == [None, None]
    assert clusters([[1.0]], ["a"], 1.0, "euclidean") == [0]


def test_renamed_photos_keep_the_numbers_of_their_light_and_background() -> None:
    rows = measured_set(["left", "even", "dim", "even", "left", "even"], 3)
    shas = {row["id"]: {"sha256": f"{index * 7 % 6:064x}"} for index, row in enumerate(rows)}
    found = {row["id"]: (row["light_cluster"], row["background_cluster"]) for row in merged(rows, **shas)}
    assert [found[row["id"]][0] for row in rows] == [1, 0, 2, 0, 1, 0]
    others = {row["id"]: f"q{9 - index}" for index, row in enumerate(rows)}
    turned = [row | {"id": others[row["id"]]} for row in reversed(rows)]
    again = merged(turned, **{others[name]: sha for name, sha in shas.items()})
    assert {row["id"]: (row["light_cluster"], row["background_cluster"]) for row in again} == {
        others[name]: numbers for name, numbers in found.items()
    }


def test_leave_one_out_agrees_with_brute_force() -> None:
    embeddings = np.random.default_rng(0).normal(size=(7, 5))
    kinds = ["a"] * 5 + ["b", "b"]
    found = leave_one_out_cosines([*embeddings.tolist(), None], [*kinds, "a"])
    for index in range(7):
        others = [j for j in range(7) if j != index and kinds[j] == kinds[index]]
        mean = np.mean([embeddings[j] / np.linalg.norm(embeddings[j]) for j in others], axis=0)
        expected = embeddings[index] @ mean / np.linalg.norm(embeddings[index]) / np.linalg.norm(mean)
        assert found[index] == pytest.approx(expected)
    assert found[7] is None
    assert leave_one_out_cosines([[1.0, 0.0]], ["a"]) == [None]
    assert leave_one_out_cosines([[0.0, 0.0], [float("nan"), 1.0]], ["a", "a"]) == [None, None]


def test_the_sharpest_of_a_group_ranks_first() -> None:
    entries = [("g", 10.0, "b"), ("g", 30.0, "c"), (None, 99.0, "d"), ("g", 30.0, "a"), ("h", None, "e")]
    assert near_duplicate_ranks(entries) == [2, 1, None, 0, 0]


def test_the_subjects_face_is_kept_else_the_likest() -> None:
    rows = [row_of(QUALITY, id="p", face=face, status="ok", sharpness=float(face)) for face in range(3)]
    rows.append(row_of(QUALITY, id="q", face=None, status="no_face"))
    photos = [row_of(PHOTOS, id=name, status="ok", sha256=name) for name in "pq"]
    faces = [row_of(FACES, id="p", role="photo", face=face, is_subject=face == 1) for face in range(3)]
    kept = merge_quality(rows, photos, faces, QualitySettings())
    assert [(row["id"], row["face"]) for row in kept] == [("p", 1), ("q", None)]
    unknown = [row | {"is_subject": None, "subject_cosine": [0.1, 0.2, 0.6][row["face"]]} for row in faces]
    assert merge_quality(rows, photos, unknown, QualitySettings())[0]["face"] == 2
    assert merge_quality(rows, photos, [], QualitySettings())[0]["face"] == 0


def test_a_copy_does_not_vouch_for_its_original() -> None:
    rows = [
        row_of(QUALITY, id=name, face=0, status="ok", embedding=embedding)
        for name, embedding in (("a", [1.0, 0.0]), ("b", [0.0, 1.0]), ("copy", [1.0, 0.0]))
    ]
    photos = [
        row_of(PHOTOS, id=name, status="duplicate" if name == "copy" else "ok", sha256="s")
        for name in ("a", "b", "copy")
    ]
    faces = [row_of(FACES, id=row["id"], role="photo", face=0, is_subject=True, embedding_kind="k") for row in rows]
    found = {row["id"]: row["identity_cosine"] for row in merge_quality(rows, photos, faces, QualitySettings())}
    assert found == {"a": 0.0, "b": 0.0, "copy": None}


def test_large_sets_are_clustered_as_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    planted = rng.integers(0, 5, 400)
    features = (planted[:, None] * 10.0 + rng.normal(0, 0.3, (400, 3))).tolist()
    features += [[200.0 + index, 0.0, 0.0] for index in (0, 0, 50)]
    names = [f"{index:03d}" for index in rng.permutation(len(features))]
    exact = clusters(features, names, 4.0, "euclidean")
    monkeypatch.setattr(merge, "MOST_LINKED", 40)
    assert clusters(features, names, 4.0, "euclidean") == exact
    assert len(set(exact)) == 7
