"""captions.csv: one line a photo, for editing by hand, and what was edited in it.

`written` is what the pipeline itself says and `caption` what stands; where they differ a hand was at work. An edited
line keeps the `written` that it had, so that putting it back into `caption` brings the pipeline's own words back from
the store. Light imports only: Snakemake reads edits while it parses.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from likeness.errors import UserError
from likeness.store import write_atomically

COLUMNS = ("id", "caption", "written", "status", "reason")
NEEDED = frozenset({"id", "caption", "written"})


@dataclass(frozen=True)
class Line:
    """What one line of captions.csv says: the caption that stands, and the pipeline's own."""

    caption: str
    written: str

    @property
    def is_edit(self) -> bool:
        """Whether a hand changed it; an emptied cell asks for the pipeline's own words."""
        return bool(self.caption) and self.caption != self.written


def read_lines(path: Path) -> dict[str, Line]:
    """Lines of captions.csv by name; none where the file is absent.

    Spreadsheets' ways are allowed: byte-order marks, semicolons or tabs between cells, more columns, another order.
    Raises UserError when the columns id, caption and written are not all there, or the file is not UTF-8.
    """
    if not path.exists():
        return {}
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text. Save it as 'CSV UTF-8'.") from error
    header = text.partition("\n")[0]
    delimiter = max((",", ";", "\t"), key=header.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    missing = NEEDED - set(reader.fieldnames or [])
    if missing:
        raise UserError(
            f"{path}: columns {sorted(missing)} are missing. Keep the header line; delete the file to have it written anew."
        )
    try:
        return {row["id"]: Line(one_line(row["caption"]), one_line(row["written"])) for row in reader if row["id"]}
    except csv.Error as error:
        raise UserError(
            f"{path}, line {reader.line_num}: not CSV ({error}). Mend the line, or delete the file."
        ) from error


def read_edits(path: Path) -> dict[str, str]:
    """Captions that a hand changed, by name; raises UserError as `read_lines` does."""
    return {name: line.caption for name, line in read_lines(path).items() if line.is_edit}


def one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def next_lines(rows: Iterable[Mapping[str, str]], before: Mapping[str, Line]) -> list[dict[str, str]]:
    """Lines of the next captions.csv from rows of the CAPTIONS table and the lines that stand now.

    An edit stays as the hand typed it, also where a sidecar wins over it or where its photo is gone; both are said in
    its status or reason.
    """
    lines = []
    rows = list(rows)
    for row in rows:
        line = {"id": row["id"], "status": row["status"], "reason": row["reason"]}
        old = before.get(row["id"], Line("", ""))
        edited = row["caption_by"] == "captions.csv"
        written = old.written if edited else row["caption"]
        caption = old.caption if old.caption and (edited or old.is_edit) else row["caption"]
        if old.is_edit and not edited and old.caption != row["caption"]:
            line["reason"] = (
                "not in use: the text file beside the image wins over this line"
                if row["caption_by"] == "sidecar"
                else "edited while captions were written; the next run reads it"
            )
        lines.append(line | {"caption": caption, "written": written})
    known = {row["id"] for row in rows}
    for name, line in before.items():
        if line.is_edit and name not in known:
            reason = "kept, but there is no usable photo or pair of this name"
            lines.append(
                {"id": name, "caption": line.caption, "written": line.written, "status": "absent", "reason": reason}
            )
    return lines


def write_lines(path: Path, lines: Iterable[Mapping[str, str]]) -> None:
    """Write captions.csv, sorted by name; untouched where it already says the same."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for line in sorted(lines, key=lambda line: line["id"]):
        writer.writerow({column: line.get(column) or "" for column in COLUMNS})
    data = buffer.getvalue().encode()
    if not path.exists() or path.read_bytes() != data:
        write_atomically(path, data)
