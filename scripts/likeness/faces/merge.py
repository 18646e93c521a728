"""Join the shards' faces and add what only the whole set knows: which face is the subject's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from likeness.config.faces import FaceMerge
from likeness.errors import UserError
from likeness.faces.by_products import picture_name
from likeness.faces.stage import FaceStageRunner, reference_images
from likeness.faces.subject import choose_subjects, first_faces_are_subjects
from likeness.store import Store

VERSION = 1


def merge_faces(rows: list[dict[str, Any]], settings: FaceMerge, store: Store) -> tuple[list[dict[str, Any]], int]:
    """Fill the set facts of FACES rows; returns the rows and how many models were loaded (for reference photos only).

    Raises UserError for a reference photo that is missing or shows no face, or whose face has no embedding.
    """
    if settings.kind == "pairs":
        return first_faces_are_subjects(rows), 0
    runner, references = None, []
    if settings.references:
        check_references(settings.references)
        runner = FaceStageRunner(settings.faces, store, settings.offline, threads=1)
        references = [_reference_embedding(runner, image) for image in reference_images(settings.references)]
    merged = choose_subjects(rows, np.array(references) if references else None, settings.faces.min_identity)
    return merged, runner.models_loaded if runner else 0


def check_references(paths: Sequence[str]) -> None:
    """Raise one UserError that names every reference photo that is not there."""
    gone = [path for path in paths if not Path(path).is_file()]
    if gone:
        raise UserError(
            f"reference: there is no {', no '.join(gone)}. Paths are relative to the working directory; mend the key, or "
            "put the photo there."
        )


def crop_files(rows: list[dict[str, Any]]) -> dict[str, str]:
    """The crops that belong beside the results: {file name: sha256}."""
    return {
        picture_name(row["id"], row["role"], row["face"]): row["crop_sha256"]
        for row in rows
        if row["crop_sha256"] is not None
    }


def _reference_embedding(runner: FaceStageRunner, image: Any) -> np.ndarray:
    faces = runner.faces_of(image)
    if not faces or faces[0].embedding_D is None:
        found = "no face" if not faces else "a face without an embedding"
        raise UserError(f"references: {image.path} shows {found}. Name a photo that shows the subject's face clearly.")
    return faces[0].embedding_D
