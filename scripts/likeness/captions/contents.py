"""Let an edit of captions.csv find its photo by bytes where no photo has its name any more, or another one has the same bytes.

An edit counts for the name that its line has. A photo without an edit of its own takes that of a line with the same
content: the renamed photo that of its old name, whose line it then takes over, and a copy that of the photo beside it,
whose line stays the place to edit both. So the lines say the same before and after a run, and undoing one undoes both.
Light imports only: Snakemake asks while it parses, so files are hashed only where their size is that of an edited photo.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from likeness.captions.edits import Line, read_lines
from likeness.photos.names import PhotoFile
from likeness.photos.pairs import PairFiles
from likeness.store import sha256_of_bytes, sha256_of_file

Lines = Mapping[str, Line]


def content_of(sha256s: Sequence[str], size_bytes: int) -> str:
    """Name the bytes of a photo, or of all images of a pair in their order; the size tells most others without hashing."""
    sha256 = sha256s[0] if len(sha256s) == 1 else sha256_of_bytes("".join(sha256s).encode())
    return f"{sha256}-{size_bytes}"


def content_of_row(row: Mapping[str, Any]) -> str | None:
    """The content of one row of an index table; None where it is not usable, or its files are gone meanwhile."""
    if row["status"] != "ok":
        return None
    if "target_path" not in row:
        return content_of([row["sha256"]], row["size_bytes"])
    paths = [row["source_path"], *(row["reference_paths"] or []), row["target_path"]]
    size_bytes = size_of(paths)
    sha256s = [row["source_sha256"], *(row["reference_sha256s"] or []), row["sha256"]]
    return None if size_bytes is None else content_of(sha256s, size_bytes)


def size_of(paths: Sequence[str]) -> int | None:
    """Bytes of all files together; None where one cannot be asked."""
    try:
        return sum(Path(path).stat().st_size for path in paths)
    except OSError:
        return None


def edits_of(path: Path, found: Sequence[PhotoFile] | Sequence[PairFiles]) -> dict[str, str]:
    """The edits of captions.csv that count for the photos or pairs that were found, by name.

    Raises UserError as `read_lines` does.
    """
    known = {one.id: one.images for one in found}
    lines = read_lines(path, known)
    wanted = {line.content for line in lines.values() if line.is_edit and line.content}
    own = {name: line.caption for name, line in lines.items() if line.is_edit and name in known}
    asked = {name: images for name, images in known.items() if name not in own} if wanted else {}
    contents = contents_of_files(asked, lines, wanted)
    return own | {name: lines[home].caption for name, home in borrowed(lines, contents, known).items()}


def contents_of_files(images: Mapping[str, Sequence[str]], lines: Lines, wanted: Collection[str]) -> dict[str, str]:
    """Which of the photos or pairs have a content that is wanted, as their files lie there.

    Hashed is what has the size of one: where it has no line yet, where its line says that content, and where its size is
    no longer that of its line.
    """
    sizes = {size_in(content) for content in wanted}
    found: dict[str, str] = {}
    for name, paths in images.items():
        size_bytes = size_of(paths)
        if size_bytes is None or str(size_bytes) not in sizes:
            continue
        before = lines[name].content if name in lines else ""
        if before and before not in wanted and size_in(before) == str(size_bytes):
            continue
        try:
            content = content_of([sha256_of_file(Path(path)) for path in paths], size_bytes)
        except OSError:
            continue  # its index job says what is wrong with it
        if content in wanted:
            found[name] = content
    return found


def size_in(content: str) -> str:
    return content.rpartition("-")[2]


def borrowed(lines: Lines, contents: Mapping[str, str], known: Collection[str]) -> dict[str, str]:
    """For each name in `contents` without an edit of its own: the name of the line that has one for the same content.

    Of several such lines one whose photo is among the `known` comes first, then the smallest name.
    """
    homes: dict[str, str] = {}
    for name in sorted(lines, key=lambda name: (name not in known, name)):
        line = lines[name]
        if line.is_edit and line.content:
            homes.setdefault(line.content, name)
    return {
        name: homes[content]
        for name, content in contents.items()
        if content in homes and not (name in lines and lines[name].is_edit)
    }


def settled(lines: Lines, contents: Mapping[str, str]) -> tuple[dict[str, Line], dict[str, str]]:
    """Lines after every edit went to where its photo is, and the names that borrow one, with the line where it stands.

    `contents` are those of all photos or pairs that are there. An edit whose own photo is gone, or has other bytes now,
    goes to a name that has its content, to one without a line first; a line that only borrows keeps the pipeline's own words.
    """
    after = {name: replace(line, content=contents.get(name, line.content)) for name, line in lines.items()}
    after |= {name: Line("", "", content) for name, content in contents.items() if name not in lines}
    loans: dict[str, str] = {}
    moved: dict[str, str] = {}
    loaned = borrowed(lines, contents, contents)
    for name in sorted(loaned, key=lambda name: (name in lines, name)):
        lender = loaned[name]
        line, content = lines[lender], contents[name]
        home = lender if contents.get(lender) == content else moved.setdefault(content, name)
        if home == name:
            after[name] = replace(line, content=content)
            if lender not in contents:
                del after[lender]
        else:
            after[name] = replace(after[name], written=after[name].written or line.written)
            loans[name] = home
    return after, loans
