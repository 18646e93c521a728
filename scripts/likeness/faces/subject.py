"""Which face in each photo is the subject's: nearest to the reference photos, else to the set's medoid.

The medoid is sought among photos that show one face (at least three), because there nobody else can be meant, and among
all candidate faces of the set; of the two, the one that more photos show is the subject. One face is a noisy measure, so
a medoid is replaced by the mean of the photos' faces near to it, until the choice stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

ENOUGH_SINGLES = 3
REFINEMENTS = 10

Row = dict[str, Any]


def choose_subjects(rows: Sequence[Row], references_ND: NDArray | None, min_identity: float) -> list[Row]:
    """Fill is_subject and subject_cosine of photo rows; a subject's face below `min_identity` becomes 'other_person'.

    rows: FACES rows of the whole set. references_ND: unit embeddings of the reference photos' faces, or None.
    Without any embedding the largest and most central face is taken and subject_cosine stays null.
    """
    anchor_D = _anchor(rows, references_ND, min_identity)
    by_photo: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row["id"], -1 if row["face"] is None else row["face"])):
        by_photo.setdefault(row["id"], []).append(dict(row))
    return [row for photo in by_photo.values() for row in _choose_in_photo(photo, anchor_D, min_identity)]


def first_faces_are_subjects(rows: Sequence[Row]) -> list[Row]:
    """Fill is_subject of pair rows: the first candidate of each role, since each pair may show another person."""
    return [{**row, "is_subject": None if row["face"] is None else row["face"] == 0} for row in rows]


def mean_reference(embeddings_ND: NDArray) -> NDArray[np.float64]:
    """Mean direction of unit embeddings, (D,) unit length."""
    mean = np.asarray(embeddings_ND, np.float64).mean(0)
    return mean / max(float(np.linalg.norm(mean)), 1e-12)


def medoid(embeddings_ND: NDArray) -> NDArray[np.float64]:
    """The embedding with the highest mean cosine to the others; equal embeddings (copies of a photo) count once."""
    distinct = np.unique(np.asarray(embeddings_ND, np.float64), axis=0)
    cosines = distinct @ distinct.T
    return distinct[int(np.argmax(cosines.sum(1)))]


def _anchor(rows: Sequence[Row], references_ND: NDArray | None, min_identity: float) -> NDArray[np.float64] | None:
    if references_ND is not None and len(references_ND):
        return mean_reference(references_ND)
    candidates = [row for row in rows if row["face"] is not None and row["embedding"] is not None]
    several = {row["id"] for row in candidates if row["face"] > 0}
    singles = [row["embedding"] for row in candidates if row["id"] not in several]
    pools = [pool for pool in (singles, [row["embedding"] for row in candidates]) if len(pool) >= ENOUGH_SINGLES]
    pools = pools or [[row["embedding"] for row in candidates]]
    anchors = [_refined(medoid(np.array(pool)), candidates, min_identity) for pool in pools if pool]
    # Single photos may all be of strangers: whoever is in more photos is the subject.
    return max(anchors, key=lambda anchor_D: _photos_with(anchor_D, candidates, min_identity), default=None)


def _photos_with(anchor_D: NDArray[np.float64], candidates: Sequence[Row], min_identity: float) -> int:
    """Count the photos that show a face within `min_identity` of the anchor."""
    return len({row["id"] for row in candidates if float(np.asarray(row["embedding"]) @ anchor_D) >= min_identity})


def _refined(anchor_D: NDArray[np.float64], candidates: Sequence[Row], min_identity: float) -> NDArray[np.float64]:
    """Move the anchor to the mean of each photo's nearest face, of those within `min_identity`, until nothing moves."""
    by_photo: dict[str, list[list[float]]] = {}
    for row in candidates:
        by_photo.setdefault(row["id"], []).append(row["embedding"])
    photos = [np.array(by_photo[name], np.float64) for name in sorted(by_photo)]
    for _ in range(REFINEMENTS):
        nearest = np.array([faces_ND[int(np.argmax(faces_ND @ anchor_D))] for faces_ND in photos])
        near = np.unique(nearest[nearest @ anchor_D >= min_identity], axis=0)
        if len(near) == 0:
            break
        moved_D = mean_reference(near)
        if np.allclose(moved_D, anchor_D, atol=1e-9):
            break
        anchor_D = moved_D
    return anchor_D


def _choose_in_photo(photo: list[Row], anchor_D: NDArray | None, min_identity: float) -> list[Row]:
    faces = [row for row in photo if row["face"] is not None]
    if not faces:
        return photo
    for row in faces:
        known = anchor_D is not None and row["embedding"] is not None
        # Clipped, because float32 embeddings of length 1 give cosines a hair above 1.
        row["subject_cosine"] = float(np.clip(np.asarray(row["embedding"]) @ anchor_D, -1, 1)) if known else None
    measured = [row for row in faces if row["subject_cosine"] is not None]
    subject = max(measured, key=lambda row: (row["subject_cosine"], -row["face"])) if measured else faces[0]
    for row in faces:
        row["is_subject"] = row is subject
    cosine = subject["subject_cosine"]
    if cosine is not None and cosine < min_identity:
        subject["status"] = "other_person"
        subject["reason"] = (
            f"{subject['id']}: the face nearest to the subject has a cosine of {cosine:.3f}; faces.min_identity asks for {min_identity:g}."
        )
    return photo
