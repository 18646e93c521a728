"""Which face is the subject's, on embeddings with known identities; the medoid against a brute-force search."""

from __future__ import annotations

import numpy as np
import pytest

from likeness.faces.subject import choose_subjects, first_faces_are_subjects, mean_reference, medoid

DIM = 64


def near(identity: int, shake: int, spread: float = 0.6) -> list[float]:
    centre = np.random.default_rng([identity]).standard_normal(DIM)
    own = np.random.default_rng([identity, shake]).standard_normal(DIM)
    vector = centre / np.linalg.norm(centre) + spread * own / np.linalg.norm(own)
    return (vector / np.linalg.norm(vector)).tolist()


def row(id: str, face: int | None, embedding: list[float] | None = None) -> dict:
    return {"id": id, "role": "photo", "face": face, "embedding": embedding, "status": "ok", "reason": ""}


def chosen(rows: list[dict]) -> dict[str, int]:
    return {r["id"]: r["face"] for r in rows if r.get("is_subject")}


def group_photos(n: int, seed: int, single: int) -> tuple[list[dict], dict[str, int]]:
    """Photos of subject 0: `single` alone, the others with one or two strangers at random places."""
    rng = np.random.default_rng(seed)
    rows, truth = [], {}
    for k in range(n):
        people = [0] if k < single else [0, *rng.integers(1, 1000, rng.integers(1, 3)).tolist()]
        order = rng.permutation(len(people))
        rows += [row(f"p{k:02}", face, near(people[i], 100 + k)) for face, i in enumerate(order)]
        truth[f"p{k:02}"] = int(np.flatnonzero(order == 0)[0])
    return rows, truth


@pytest.mark.parametrize("single", [5, 0])
def test_subject_is_found_among_strangers(single):
    for seed in range(5):
        rows, truth = group_photos(20, seed, single)
        assert chosen(choose_subjects(rows, None, 0.3)) == truth


def test_reference_photo_decides_against_the_majority():
    rows = [row(f"p{k}", 0, near(1, k)) for k in range(5)] + [row("q", 0, near(1, 9)), row("q", 1, near(2, 1))]
    reference = np.array([near(2, 50)])
    found = choose_subjects(rows, reference, 0.4)
    assert chosen(found)["q"] == 1
    assert {r["id"] for r in found if r["status"] == "other_person"} == {f"p{k}" for k in range(5)}


def test_another_person_is_named_with_the_cosine():
    rows = [row(f"p{k}", 0, near(1, k)) for k in range(6)] + [row("other", 0, near(2, 1))]
    found = {r["id"]: r for r in choose_subjects(rows, None, 0.4)}
    other = found["other"]
    assert other["status"] == "other_person" and other["is_subject"]
    assert f"{other['subject_cosine']:.3f}" in other["reason"] and "0.4" in other["reason"]
    assert all(found[f"p{k}"]["status"] == "ok" for k in range(6))


def test_threshold_both_ways():
    rows, reference = [row(f"p{k}", 0, near(1, k)) for k in range(4)], np.array([near(1, 77)])
    cosines = {r["id"]: r["subject_cosine"] for r in choose_subjects(rows, reference, -1)}
    lowest = min(cosines, key=lambda name: cosines[name])
    above = choose_subjects(rows, reference, cosines[lowest] + 1e-6)
    below = choose_subjects(rows, reference, cosines[lowest] - 1e-6)
    assert [r["id"] for r in above if r["status"] == "other_person"] == [lowest]
    assert all(r["status"] == "ok" for r in below)


def test_without_embeddings_the_first_candidate_is_taken():
    found = choose_subjects([row("p", 1), row("p", 0), row("q", None)], None, 0.9)
    assert chosen(found) == {"p": 0}
    assert all(r.get("subject_cosine") is None and r["status"] == "ok" for r in found)


def test_copies_of_a_stranger_do_not_outvote_the_subject():
    copies = [row(f"c{k}", 0, near(2, 1)) for k in range(6)]
    rows = [row(f"p{k}", 0, near(1, k)) for k in range(4)] + copies
    found = choose_subjects(rows, None, 0.4)
    assert {r["id"] for r in found if r["status"] == "other_person"} == {f"c{k}" for k in range(6)}


def test_medoid_equals_brute_force():
    vectors = np.array([near(1, k) for k in range(7)])
    sums = [sum(float(a @ b) for b in vectors) for a in vectors]
    assert np.allclose(medoid(vectors), vectors[int(np.argmax(sums))])
    assert np.linalg.norm(mean_reference(vectors)) == pytest.approx(1)


def test_pairs_take_the_first_candidate_of_each_role():
    rows = [{**row("a", face), "role": role} for role in ("source", "target") for face in (0, 1)]
    rows.append({**row("b", None), "role": "target"})
    assert [r["is_subject"] for r in first_faces_are_subjects(rows)] == [True, False, True, False, None]
