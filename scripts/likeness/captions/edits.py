"""captions.csv: one line a photo, for editing by hand, and what was edited in it.

`written` is what the pipeline itself says and `caption` what stands; where they differ a hand was at work. An edited
line keeps the `written` that it had, so that putting it back into `caption` brings the pipeline's own words back from
the store. `key` is the name as text: spreadsheets make 1 of the id 001, and dates of others, when they save the file.
`content` names the photo's bytes, by which an edit finds a renamed one (`contents`).
Light imports only: Snakemake reads edits while it parses.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import cached_property
from pathlib import Path

from likeness.errors import UserError
from likeness.photos.names import slug
from likeness.photos.spreadsheets import delimiter_of
from likeness.store import write_atomically

COLUMNS = ("id", "caption", "written", "status", "reason", "key", "content")
NEEDED = frozenset({"id", "caption", "written"})
KEY_MARK = "#"
NUMBER = re.compile(r"\d+(?:[.,]\d+)?(?:[eE][+-]?\d+)?", re.ASCII)


@dataclass(frozen=True)
class Line:
    """What one line of captions.csv says: the caption that stands, and the pipeline's own; `content` names the photo's bytes."""

    caption: str
    written: str
    content: str = ""

    @property
    def is_edit(self) -> bool:
        """Whether a hand changed it; an emptied cell asks for the pipeline's own words."""
        return bool(self.caption) and self.caption != self.written


class Names:
    """Finds the photo or pair that a line means, also where a spreadsheet took its name for a number or a date.

    `known`: names of the photos or pairs that are there; `own`: names that stand in the file as they are.
    """

    def __init__(self, known: Collection[str], own: Collection[str]) -> None:
        self._known, self._own = known, own

    def of_line(self, name: str, key: str) -> list[str]:
        """The names that a line may mean; none where its photo is gone, or where nothing tells.

        `key` is the name as text, which no spreadsheet rewrites. It gives way to another known name that a hand put
        into the line, and not to what its own number looks like.
        """
        number = as_number(name)
        if key and not (name in self._known and name != key and (number is None or number != as_number(key))):
            return [key]
        if name in self._known:
            return [name]
        equal = [] if number is None else self._numbers.get(number, [])
        return equal or ([name] if slug(name) == name else [])

    @cached_property
    def _numbers(self) -> dict[Decimal, list[str]]:
        """Known names that are numbers and have no line of their own, by their value."""
        found: dict[Decimal, list[str]] = {}
        for name in sorted(set(self._known) - set(self._own)):
            number = as_number(name)
            if number is not None:
                found.setdefault(number, []).append(name)
        return found


def as_number(text: str) -> Decimal | None:
    """What a spreadsheet makes of a name such as 001, 1e5 or 1,00E+05; None for a name that is no number."""
    if not NUMBER.fullmatch(text):
        return None
    try:
        return Decimal(text.replace(",", "."))
    except InvalidOperation:
        return None


def read_lines(path: Path, known: Collection[str] = ()) -> dict[str, Line]:
    """Lines of captions.csv by name; none where the file is absent. `known`: names of the photos or pairs.

    Spreadsheets' ways are allowed: byte-order marks, semicolons or tabs between cells, more columns, another order,
    names taken for numbers. Raises UserError when the columns id, caption and written are not all there, the file is
    not UTF-8, or an edited line may belong to several photos or to none that can be.
    """
    if not path.exists():
        return {}
    rows = read_rows(path)
    names = Names(known, {row["id"] for _, row in rows})
    lines: dict[str, Line] = {}
    for number, row in rows:
        line = Line(one_line(row["caption"]), one_line(row["written"]), one_line(row.get("content")))
        meant = names.of_line(row["id"], row["key"])
        if len(meant) != 1:
            if not line.is_edit:
                continue
            which = f"may mean {' or '.join(meant)}" if meant else "can be the name of no photo or pair"
            raise UserError(
                f"{path}, line {number}: the id {row['id']!r} {which}; a spreadsheet changed it. Write the name into the "
                "column id again, so that the edited caption finds its photo."
            )
        old = lines.get(meant[0])
        if old and old.is_edit and line.is_edit and old.caption != line.caption:
            raise UserError(
                f"{path}, line {number}: a second edited caption of {meant[0]!r}. Keep one of the two lines."
            )
        if old is None or line.is_edit:
            lines[meant[0]] = line
    return lines


def read_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """The file's rows with the numbers of their lines: id, key (empty where absent), caption and written as they stand."""
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {number}: not UTF-8 text. Save the file as 'CSV UTF-8'.") from error
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter_of(text))
    missing = NEEDED - set(reader.fieldnames or [])
    if missing:
        raise UserError(
            f"{path}: columns {sorted(missing)} are missing. Keep the header line; delete the file to have it written anew."
        )
    rows = []
    try:
        for row in reader:
            key = (row.get("key") or "").strip().removeprefix(KEY_MARK)
            name = (row["id"] or "").strip() or key
            if name:
                rows.append((reader.line_num, row | {"id": name, "key": key}))
    except csv.Error as error:
        raise UserError(
            f"{path}, line {reader.line_num}: not CSV ({error}). Mend the line, or delete the file."
        ) from error
    return rows


def one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def next_lines(
    rows: Sequence[Mapping[str, str]], before: Mapping[str, Line], loans: Mapping[str, str]
) -> list[dict[str, str]]:
    """Lines of the next captions.csv from rows of the CAPTIONS table and the lines that stand now (`contents.settled`).

    An edit stays as the hand typed it, also where a sidecar wins over it or where its photo is gone; both are said in
    its status or reason, and so is a caption that is edited in another line (`loans`: name → that line's).
    """
    lines = []
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
        elif edited and row["id"] in loans:
            caption = written
            line["reason"] = f"the same file as {loans[row['id']]}, whose edited caption counts here too"
        lines.append(line | {"caption": caption, "written": written, "content": old.content})
    known = {row["id"] for row in rows}
    absent = {
        "status": "absent",
        "reason": "kept, but there is no usable photo or pair of this name, or of the same bytes",
    }
    for name, line in before.items():
        if line.is_edit and name not in known:
            kept = {"id": name, "caption": line.caption, "written": line.written, "content": line.content}
            lines.append(kept | absent)
    return lines


def write_lines(path: Path, lines: Iterable[Mapping[str, str]]) -> None:
    """Write captions.csv, sorted by name; untouched where it already says the same.

    It begins with a byte-order mark, without which Excel takes its letters for those of the system's code page.
    """
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for line in sorted(lines, key=lambda line: line["id"]):
        cells = {**line, "key": f"{KEY_MARK}{line['id']}"}
        writer.writerow({column: cells.get(column) or "" for column in COLUMNS})
    data = buffer.getvalue().encode("utf-8-sig")
    if not path.exists() or path.read_bytes() != data:
        write_atomically(path, data)
