"""Which image files a photos or pairs table names: the one place where later stages look them up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from likeness.errors import UserError
from likeness.tables import PAIRS, PHOTOS, read_table


@dataclass(frozen=True)
class ImageRef:
    """One image file: sizes are those of the upright image in px, None for references beyond the source."""

    id: str
    role: str
    path: str
    sha256: str
    width_px: int | None
    height_px: int | None
    repeats: int


def reference_role(index: int) -> str:
    """Role of the index-th further reference, from 0: reference, reference2, reference3 …"""
    return "reference" if index == 0 else f"reference{index + 1}"


def read_images(table_path: Path | str) -> list[ImageRef]:
    """List the images of a PHOTOS or PAIRS table whose row is ok, by id; of a pair: source, references, target."""
    return [image for row in read_image_rows(table_path) if row["status"] == "ok" for image in images_of(row)]


def find_by_sha(table_path: Path | str) -> dict[str, str]:
    """Map the sha256 of every usable image to its path; of equal files the first by id."""
    found: dict[str, str] = {}
    for image in read_images(table_path):
        found.setdefault(image.sha256, image.path)
    return found


def read_image_rows(table_path: Path | str) -> list[dict[str, Any]]:
    """Read all rows of a PHOTOS or PAIRS table; raises UserError for any other table."""
    table = read_table(Path(table_path))
    if table.schema.names not in (PHOTOS.schema.names, PAIRS.schema.names):
        raise UserError(
            f"{table_path}: neither a photos nor a pairs table of this version. "
            f"Found columns {table.schema.names}. Delete it and run again."
        )
    return table.to_pylist()


def images_of(row: Mapping[str, Any]) -> Iterator[ImageRef]:
    """The images that one row names."""
    name, repeats = row["id"], row["repeats"]
    if "target_path" not in row:
        yield ImageRef(name, "photo", row["path"], row["sha256"], row["width_px"], row["height_px"], repeats)
        return
    size = row["source_width_px"], row["source_height_px"]
    yield ImageRef(name, "source", row["source_path"], row["source_sha256"], *size, repeats)
    references = zip(row["reference_paths"] or [], row["reference_sha256s"] or [], strict=True)
    for index, (path, sha256) in enumerate(references):
        yield ImageRef(name, reference_role(index), path, sha256, None, None, repeats)
    yield ImageRef(name, "target", row["target_path"], row["sha256"], row["width_px"], row["height_px"], repeats)
