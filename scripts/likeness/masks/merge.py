"""Which masks lie beside the results for people: those of the subject's face in each image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from likeness.faces.by_products import picture_name

VERSION = 1
PLAIN_KIND = "head"  # the kind that is also written without its name


def mask_files(masks: Sequence[dict[str, Any]], faces: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The masks that belong beside the results: {file name: sha256}.

    `<id>.<kind>.png` for each kind of the subject's face (of a pair `<id>.<role>.<kind>.png`), and `<id>.png` for the
    head, else for the first kind there is.
    """
    subjects = {(row["id"], row["role"]): row["face"] for row in faces if row["is_subject"]}
    files: dict[str, str] = {}
    plain: dict[str, tuple[bool, str, str]] = {}
    for row in masks:
        name = row["id"], row["role"]
        # A mask drawn by hand may belong to a photo without any face.
        if row["mask_sha256"] is None or row["face"] != subjects.get(name):
            continue
        files[picture_name(*name, 0, row["kind"])] = row["mask_sha256"]
        rank = (row["kind"] != PLAIN_KIND, row["kind"], row["mask_sha256"])
        short = picture_name(*name, 0)
        plain[short] = min(plain.get(short, rank), rank)
    return files | {name: sha256 for name, (_, _, sha256) in plain.items()}
