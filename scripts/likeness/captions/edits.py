"""captions.csv: one line a photo, for editing by hand, and what was edited in it.

The file is rewritten after each run with the hand's captions kept: `written` is what the pipeline itself would say, and
where `caption` differs from it a hand was at work. Light imports only: Snakemake reads edits while it parses.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path

from likeness.errors import UserError
from likeness.store import write_atomically

COLUMNS = ("id", "caption", "written", "status", "reason")


def read_edits(path: Path) -> dict[str, str]:
    """Captions that a hand changed, by name; none where the file is absent. Spreadsheets' byte-order marks are allowed.

    Raises UserError when the columns id, caption and written are not all there.
    """
    if not path.exists():
        return {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        missing = {"id", "caption", "written"} - set(reader.fieldnames or [])
        if missing:
            raise UserError(
                f"{path}: columns {sorted(missing)} are missing. Keep the header line; delete the file to have it written anew."
            )
        edits = {}
        for row in reader:
            caption = " ".join((row["caption"] or "").split())
            if row["id"] and caption and caption != (row["written"] or ""):
                edits[row["id"]] = caption
    return edits


def write_edits(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    """Write captions.csv, sorted by name; untouched where it already says the same."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in sorted(rows, key=lambda row: row["id"]):
        writer.writerow({column: row.get(column) or "" for column in COLUMNS})
    data = buffer.getvalue().encode()
    if not path.exists() or path.read_bytes() != data:
        write_atomically(path, data)
