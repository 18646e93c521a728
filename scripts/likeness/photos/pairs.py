"""Find before/after pairs in any of their three layouts; each gives the same rows.

Layouts: a flat folder (`NN_start`, `NN_start2` …, `NN_end`, `NN.txt`), one folder a role (same file names), or a table
(CSV, TSV, JSONL, Parquet) with one column a role. All pairs of one configured folder have the same roles: a role that
any of them brings, or that is configured, is missed by name in each pair that lacks it. The workflow lists pairs while
it parses, so nothing heavy is imported here (Parquet alone needs pyarrow, at the time).
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from likeness.errors import UserError, nearest
from likeness.photos.names import SIDECAR_ENDING, is_photo, join, names_of, sidecar_of, walk_files
from likeness.photos.spreadsheets import delimiter_of

if TYPE_CHECKING:
    from likeness.config.photos import PairFolder

FLAT_NAME = re.compile(r"(?P<root>.+)_(?P<role>start|end)(?P<number>[2-4]?)", re.IGNORECASE)
ROLES_ALLOWED = ("source", "target", "reference", "reference2", "reference3")
TABLE_EXTRAS = ("id", "caption", "mask", "repeats")
ENDINGS_OF_TARGET = re.compile(r"[-_ ](end|target|after)$", re.IGNORECASE)


@dataclass(frozen=True)
class PairFiles:
    """One pair that was found: role → path as configured; `missing` names the roles that the others of its folder have.

    `caption` is the text of a pair table's row, `caption_path` a text file beside the images; `stray` is a file that
    belongs to no pair.
    """

    id: str
    paths: Mapping[str, str]
    repeats: int
    mask_path: str | None = None
    caption: str | None = None
    caption_path: str | None = None
    missing: tuple[str, ...] = ()
    stray: str | None = None

    @property
    def files(self) -> list[str]:
        """The files that its index row is read from, without tables."""
        return [file for file in (*self.paths.values(), self.stray, self.mask_path) if file]

    @property
    def images(self) -> list[str]:
        """The files whose bytes it consists of: source, references, target."""
        return list(self.paths.values())

    @property
    def sidecar(self) -> str | None:
        return self.caption_path


@dataclass
class Draft:
    """A pair while its files are gathered; `root` is its relative name, `place` tells equal roots apart."""

    root: str
    place: str
    paths: dict[str, str] = field(default_factory=dict)
    caption: str | None = None
    caption_path: str | None = None
    mask_path: str | None = None
    repeats: int | None = None
    stray: str | None = None


def list_pairs(folders: Sequence[PairFolder]) -> list[PairFiles]:
    """List the pairs of all folders, named and sorted by name; an absent folder or table lists nothing.

    Raises UserError for a table without the needed columns and for roles with unknown names.
    """
    drafts: list[Draft] = []
    pairs: list[PairFiles] = []
    for folder in folders:
        found = drafts_of(folder)
        roles = roles_of(found, folder)
        drafts += found
        pairs += [finish(draft, roles, folder) for draft in found]
    seen: Counter[str] = Counter()
    for draft in drafts:  # the very same pair given twice still needs two names
        seen[draft.place] += 1
        draft.place += f"#{seen[draft.place]}" if seen[draft.place] > 1 else ""
    names = names_of([draft.root for draft in drafts], [draft.place for draft in drafts])
    named = [replace(pair, id=name) for pair, name in zip(pairs, names, strict=True)]
    return sorted(named, key=lambda pair: pair.id)


def drafts_of(folder: PairFolder) -> list[Draft]:
    """Gather one configured folder's pairs by whichever layout it declares."""
    if folder.roles and folder.table:
        raise UserError(f"pairs: {folder.path}: `roles` and `table` are both given. Keep one of them.")
    if folder.table:
        return drafts_of_table(folder)
    return drafts_of_roles(folder, folder.roles) if folder.roles else drafts_of_flat(folder)


def drafts_of_flat(folder: PairFolder) -> list[Draft]:
    """Read `NN_start`, `NN_start2` …, `NN_end` with `NN.txt`; other images become strays."""
    drafts: dict[str, Draft] = {}
    strays: list[Draft] = []
    files = walk_files(folder.path, skip=folder.masks)
    for relative in filter(is_photo, files):
        path = join(folder.path, relative)
        match = FLAT_NAME.fullmatch(str(PurePosixPath(relative).with_suffix("")))
        role = flat_role(match) if match else None
        root = match["root"] if match else relative
        if role is None or (root in drafts and role in drafts[root].paths):
            strays.append(Draft(relative, path, stray=path))
            continue
        drafts.setdefault(root, Draft(f"{root}.", join(folder.path, root))).paths[role] = path
    for relative in files:
        root = str(PurePosixPath(relative).with_suffix(""))
        if relative.endswith(SIDECAR_ENDING) and root in drafts:
            drafts[root].caption_path = join(folder.path, relative)
    return [*drafts.values(), *strays]


def flat_role(match: re.Match[str]) -> str | None:
    """Role that a flat name stands for: start is the source, start2 the reference, start3 reference2 …"""
    number = int(match["number"] or 1)
    if match["role"].lower() == "end":
        return "target" if number == 1 else None
    return "source" if number == 1 else reference_name(number - 1)


def drafts_of_roles(folder: PairFolder, roles: Mapping[str, str]) -> list[Draft]:
    """Read one folder a role; files belong together by their relative name without the ending."""
    check_roles(roles, f"pairs: {folder.path}: roles")
    drafts: dict[str, Draft] = {}
    strays: list[Draft] = []
    for role, below in roles.items():
        base = join(folder.path, below)
        files = walk_files(base, skip=folder.masks)
        for relative in filter(is_photo, files):
            root = str(PurePosixPath(relative).with_suffix(""))
            draft = drafts.setdefault(root, Draft(f"{root}.", join(folder.path, root)))
            path = join(base, relative)
            if role in draft.paths:
                strays.append(Draft(f"{below}/{relative}", path, stray=path))
                continue
            draft.paths[role] = path
            if role == "target" and sidecar_of(relative) in files:
                draft.caption_path = join(base, sidecar_of(relative))
    return [*drafts.values(), *strays]


def drafts_of_table(folder: PairFolder) -> list[Draft]:
    """Read a pair table; its paths are relative to the folder, or absolute."""
    path = Path(folder.path) / (folder.table or "")
    if not path.exists():
        return []
    rows = read_pair_table(path)
    named = {column for row in rows for column, value in row.items() if value not in (None, "")}
    check_roles({name for name in named if name not in TABLE_EXTRAS and looks_like_role(name)}, f"{path}: columns")
    if not {"source", "target"} <= {column for row in rows for column in row} and rows:
        raise UserError(
            f"{path}: the columns source and target are needed. Found: {', '.join(sorted(rows[0]))}. "
            f"Allowed: {', '.join((*ROLES_ALLOWED, *TABLE_EXTRAS))}; others are ignored."
        )
    return [draft_of_row(row, position, folder, path) for position, row in enumerate(rows)]


def draft_of_row(row: Mapping[str, Any], position: int, folder: PairFolder, path: Path) -> Draft:
    """One table row as a pair; without an `id` it is named after its target (or source, or its place)."""
    filled = {name: str(value).strip() for name, value in row.items() if value is not None and str(value).strip()}
    paths = {role: join(folder.path, filled[role]) for role in filled if role in ROLES_ALLOWED}
    seen_as = filled.get("target") or filled.get("source") or f"row-{position + 1}"
    stem = ENDINGS_OF_TARGET.sub("", str(PurePosixPath(seen_as).with_suffix("")))
    root = filled.get("id") or stem
    repeats = filled.get("repeats")
    if repeats is not None and not re.fullmatch(r"[1-9]\d{0,3}(\.0)?", repeats):
        raise UserError(f"{path}, row {position + 1}: repeats is {repeats!r}; allowed: a whole number from 1 to 9999.")
    return Draft(
        f"{root}.",
        f"{path}#{root}#{json.dumps(paths, sort_keys=True)}",
        paths,
        caption=filled.get("caption"),
        mask_path=join(folder.path, filled["mask"]) if "mask" in filled else None,
        repeats=int(float(repeats)) if repeats else None,
    )


def read_pair_table(path: Path) -> list[dict[str, Any]]:
    """Read CSV (commas, semicolons or tabs), TSV, JSONL or Parquet as dictionaries; raises UserError naming file and line."""
    ending = path.suffix.lower()
    if ending in (".csv", ".tsv"):
        return csv_rows(path, "\t" if ending == ".tsv" else None)
    if ending in (".jsonl", ".ndjson"):
        lines = text_of(path).split("\n")
        return [spread(json_row(line, path, number)) for number, line in enumerate(lines, 1) if line.strip()]
    if ending == ".parquet":
        return [spread(row) for row in parquet_rows(path)]
    raise UserError(f"{path}: unknown kind of pair table. Allowed: .csv, .tsv, .jsonl, .parquet.")


def text_of(path: Path) -> str:
    """The text of a table, byte-order mark or not; raises UserError where it is not UTF-8 or cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 text (byte {error.start + 1}). Save it as 'CSV UTF-8', as spreadsheets call it."
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Allow reading, or put the table there.") from error


def csv_rows(path: Path, delimiter: str | None) -> list[dict[str, Any]]:
    """Rows of a CSV file; without a delimiter the sign that its header has most of counts."""
    text = text_of(path)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter or delimiter_of(text))
    try:
        rows = list(reader)
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not CSV ({error}). Mend the line.") from error
    for position, row in enumerate(rows, start=1):
        if any(row.get(None) or ()):  # type: ignore[call-overload]
            raise UserError(
                f"{path}, row {position}: more cells than the header has columns. Put quotes around a cell with "
                "the sign between cells in it."
            )
    return [{name.strip(): value for name, value in row.items() if name is not None} for row in rows]


def parquet_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a Parquet file; raises UserError where it is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path).read(use_threads=False).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a Parquet file that can be read ({error}). Write it again.") from error


def json_row(line: str, path: Path, number: int) -> dict[str, Any]:
    """One line of JSONL as a dictionary."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{path}, line {number}: not JSON ({error}). Each line is one object.") from error
    if not isinstance(row, dict):
        raise UserError(f"{path}, line {number}: found {type(row).__name__}, but each line is one JSON object.")
    return row


def spread(row: Mapping[str, Any]) -> dict[str, Any]:
    """Let a `reference` that is a list stand for reference, reference2 …"""
    references = row.get("reference")
    if not isinstance(references, list):
        return dict(row)
    rest = {name: value for name, value in row.items() if name != "reference"}
    return rest | {reference_name(number): value for number, value in enumerate(references, start=1)}


def looks_like_role(name: str) -> bool:
    return name.startswith(("source", "target", "reference"))


def check_roles(roles: Any, where: str) -> None:
    """Refuse role names that mean nothing, and more references than training can take."""
    for role in roles:
        if role not in ROLES_ALLOWED:
            raise UserError(f"{where}: unknown role {role!r}; {nearest(role, ROLES_ALLOWED)}.")


def roles_of(drafts: Sequence[Draft], folder: PairFolder) -> list[str]:
    """The roles that every pair of a folder must have, in order: source, references without a gap, target."""
    found = {role for draft in drafts for role in draft.paths} | set(folder.roles or {})
    references = [int(role[9:] or 1) for role in found if role.startswith("reference")]
    return ["source", *(reference_name(number) for number in range(1, max(references, default=0) + 1)), "target"]


def reference_name(number: int) -> str:
    return "reference" if number == 1 else f"reference{number}"


def finish(draft: Draft, roles: Sequence[str], folder: PairFolder) -> PairFiles:
    """Settle mask, repeats and missing roles of one pair; its name follows."""
    mask = draft.mask_path
    if mask is None and folder.masks:
        wanted = f"{draft.root.removesuffix('.')}.png"
        mask = join(folder.masks, wanted) if Path(folder.masks, wanted).is_file() else None
    return PairFiles(
        id="",
        paths={role: draft.paths[role] for role in roles if role in draft.paths},
        repeats=draft.repeats or folder.repeats,
        mask_path=mask,
        caption=draft.caption,
        caption_path=draft.caption_path,
        missing=() if draft.stray else tuple(role for role in roles if role not in draft.paths),
        stray=draft.stray,
    )
