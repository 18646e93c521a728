"""The subject's face in what a phase trains on, for the losses that read it.

It is told by the picture's bytes, and of the phase's own samples only: no new name and no other photo changes the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from likeness.photos.images import images_of

Row = Mapping[str, Any]


def faces_by_image(images: Sequence[Row], faces: Iterable[Row]) -> dict[str, Row]:
    """The FACES row of the subject in every usable image that shows it, by the image's sha256.

    Of equal images the first counts: by name, and in a pair source, references, target.
    """
    subjects = {(face["id"], face["role"]): face for face in faces if face["is_subject"]}
    usable = sorted((row for row in images if row["status"] == "ok"), key=lambda row: row["id"])
    first: dict[str, Row | None] = {}
    for image in (image for row in usable for image in images_of(row)):
        first.setdefault(image.sha256, subjects.get((image.id, image.role)))
    return {sha256: face for sha256, face in first.items() if face is not None}


def sample_faces(samples: Iterable[Row], faces: Mapping[str, Row]) -> list[dict[str, Any]]:
    """SAMPLE_FACES rows of the samples of a manifest, of a phase's candidates or of the holdout."""
    shown = {sample["image_sha256"] for sample in samples} & faces.keys()
    return [
        {
            "image_sha256": sha256,
            "box": [faces[sha256][side] for side in ("x0", "y0", "x1", "y1")],
            "landmarks": faces[sha256]["landmarks"],
        }
        for sha256 in sorted(shown)
    ]
