"""Join what all stages know of each photo or pair into one row, and give each its sample id.

The columns of the row are what a phase's SQL may use: those of the photos or pairs table and of the quality table, the
caption's under `caption` and `caption_…`, the face's `face_score` and `subject_cosine`, and `mask_area`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from likeness.config.phases import DecisionStage
from likeness.store import canonical_json, sha256_of_bytes
from likeness.tables import CAPTIONS, PAIRS, PHOTOS, QUALITY, TEXT, Table

Row = Mapping[str, Any]

FACE_COLUMNS = {"score": "face_score", "subject_cosine": "subject_cosine", "status": "face_status"}
CAPTION_COLUMNS = {
    column.name: column.name if column.name.startswith("caption") else f"caption_{column.name}"
    for column in CAPTIONS.columns
    if column.name != "id"
}
QUALITY_COLUMNS = tuple(column.name for column in QUALITY.columns if column.name not in ("id", "status", "reason"))
NOT_FOR_SQL = frozenset({"path", "source_path", "target_path", "reference_paths", "mask_path", "mask_sha256"})
"""Where files lie must not decide what is trained on, as moving a folder would retrain; nor how a hand saved its mask."""


@dataclass(frozen=True)
class Sample:
    """One photo or pair: its name, all its columns, and what the manifest says of it (null ids where it cannot train)."""

    id: str
    columns: Mapping[str, Any]
    sample_id: str | None
    image_sha256: str | None
    mask_sha256: str | None
    reference_sha256s: tuple[str, ...]
    caption: str
    repeats: int
    face_reason: str = ""

    def __getitem__(self, column: str) -> Any:
        return self.columns[column]

    @property
    def has_face(self) -> bool:
        return self.columns["face"] is not None

    def manifest_row(self) -> dict[str, Any]:
        return {
            "sample_id": self.sample_id,
            "image_sha256": self.image_sha256,
            "mask_sha256": self.mask_sha256,
            "reference_sha256s": list(self.reference_sha256s),
            "caption": self.caption,
            "repeats": self.repeats,
        }


def sample_id(image_sha256: str, mask_sha256: str | None, reference_sha256s: Sequence[str], caption: str) -> str:
    """Name a sample by the bytes that training reads of it, so that renaming a file changes nothing."""
    return sha256_of_bytes(canonical_json([image_sha256, mask_sha256, list(reference_sha256s), caption]).encode())


def sample_schema(kind: str) -> pa.Schema:
    """Columns and types of the table that a phase's SQL sees, for kind photos or pairs."""
    images = PAIRS if kind == "pairs" else PHOTOS
    fields: dict[str, pa.DataType] = {"sample_id": TEXT}
    fields |= {name: type_ for name, type_ in _fields(images) if name not in NOT_FOR_SQL}
    fields |= {name: type_ for name, type_ in _fields(QUALITY) if name in QUALITY_COLUMNS}
    fields |= {CAPTION_COLUMNS[name]: type_ for name, type_ in _fields(CAPTIONS) if name in CAPTION_COLUMNS}
    fields |= {
        "face_score": pa.float64(),
        "subject_cosine": pa.float64(),
        "face_status": TEXT,
        "mask_area": pa.float64(),
    }
    return pa.schema(list(fields.items()))


def join_samples(
    images: Sequence[Row],
    faces: Sequence[Row],
    masks: Sequence[Row],
    quality: Sequence[Row],
    captions: Sequence[Row],
    stage: DecisionStage,
) -> list[Sample]:
    """Join the merged tables, one sample a photo or pair, by name.

    A sample id is given to all with image bytes and a caption, also to those that a rule will drop.
    """
    role = "target" if stage.kind == "pairs" else "photo"
    face_of = {(row["id"], row["face"]): row for row in faces if row["role"] == role}
    mask_of = {
        (row["id"], row["face"]): row
        for row in masks
        if row["role"] == role and row["kind"] == stage.mask_kind and row["status"] == "ok"
    }
    quality_of = {row["id"]: row for row in quality}
    caption_of = {row["id"]: row for row in captions}
    samples = []
    for image in sorted(images, key=lambda row: row["id"]):
        name = image["id"]
        measured = quality_of.get(name, {})
        key = (name, measured.get("face"))
        samples.append(
            _sample(image, measured, face_of.get(key, {}), mask_of.get(key, {}), caption_of.get(name, {}), stage)
        )
    return samples


def _sample(image: Row, quality: Row, face: Row, mask: Row, caption: Row, stage: DecisionStage) -> Sample:
    references: tuple[Any, ...] = ()
    if stage.kind == "pairs":
        references = (image["source_sha256"], *(image["reference_sha256s"] or []))
    line = caption.get("caption") or ""
    content: str | None = image["sha256"]
    complete = content is not None and None not in references and line
    identity = sample_id(content, mask.get("mask_sha256"), references, line) if content and complete else None
    columns: dict[str, Any] = {"sample_id": identity}
    columns |= {name: image[name] for name in image if name not in NOT_FOR_SQL}
    columns |= {name: quality.get(name) for name in QUALITY_COLUMNS}
    columns |= {as_name: caption.get(name) for name, as_name in CAPTION_COLUMNS.items()}
    columns |= {as_name: face.get(name) for name, as_name in FACE_COLUMNS.items()}
    columns |= {"mask_area": mask.get("area_fraction")}
    columns["near_duplicate_group"] = image["near_duplicate_group"]
    return Sample(
        id=image["id"],
        columns=columns,
        sample_id=identity,
        image_sha256=image["sha256"],
        mask_sha256=mask.get("mask_sha256"),
        reference_sha256s=references,
        caption=line,
        repeats=image["repeats"],
        face_reason=face.get("reason") or "",
    )


def _fields(table: Table) -> list[tuple[str, pa.DataType]]:
    return [(column.name, column.type) for column in table.columns]
