"""Find photos, and name them: one walk a folder, names that people read, and the shard that a name belongs to.

The workflow lists photos while it parses, so nothing heavy is imported here, and each folder is walked once.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from likeness.config.photos import PhotoFolder

SIDECAR_ENDING = ".txt"
NOT_PHOTOS = frozenset(
    {".txt", ".caption", ".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".yaml", ".yml", ".toml", ".npy"}
    | {".npz", ".safetensors", ".md", ".xml", ".html", ".xmp", ".aae", ".db", ".ini", ".lnk", ".url", ".tmp", ".part"}
)
"""Endings of files that lie beside photos and mean none: captions, tables, edits of other programs."""
SKIPPED_FOLDERS = frozenset({"@eadir", "__macosx", "thumbnails", "thumbs"})
MAX_NAME = 120
OTHER_SIGNS = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True)
class PhotoFile:
    """One file that was found: `path` as configured, `mask_path` and `sidecar_path` where they exist."""

    id: str
    path: str
    repeats: int
    mask_path: str | None = None
    sidecar_path: str | None = None

    @property
    def files(self) -> list[str]:
        """The files that its index row is read from."""
        return [file for file in (self.path, self.mask_path) if file]

    @property
    def images(self) -> list[str]:
        """The files whose bytes it consists of."""
        return [self.path]

    @property
    def sidecar(self) -> str | None:
        return self.sidecar_path


@dataclass(frozen=True)
class Candidate:
    """A found file before it has a name."""

    folder: int
    relative: str
    path: str
    mask_path: str | None
    sidecar_path: str | None


def list_photos(folders: Sequence[PhotoFolder]) -> list[PhotoFile]:
    """List every file of the folders that could be a photo, named and sorted by name; an absent folder lists nothing.

    A file inside two configured folders is listed once, for the deeper one.
    """
    found: dict[str, Candidate] = {}
    depth = sorted(range(len(folders)), key=lambda index: len(PurePosixPath(folders[index].path).parts))
    for index in depth:
        for candidate in candidates_of(index, folders[index]):
            found[candidate.path] = candidate
    ordered = [found[path] for path in sorted(found)]
    names = names_of([candidate.relative for candidate in ordered], [candidate.path for candidate in ordered])
    photos = [
        PhotoFile(name, item.path, folders[item.folder].repeats, item.mask_path, item.sidecar_path)
        for name, item in zip(names, ordered, strict=True)
    ]
    return sorted(photos, key=lambda photo: photo.id)


def candidates_of(index: int, folder: PhotoFolder) -> Iterator[Candidate]:
    """Walk one folder and pair photos with masks and sidecars."""
    masks = set(walk_files(folder.masks)) if folder.masks else set()
    files = list(walk_files(folder.path, skip=folder.masks))
    known = set(files)
    base = join(folder.path, "_").removesuffix("_")
    for relative in files:
        if not is_photo(relative):
            continue
        mask, sidecar = with_ending(relative, ".png"), sidecar_of(relative)
        yield Candidate(
            index,
            relative,
            base + relative,
            join(folder.masks, mask) if folder.masks and mask in masks else None,
            base + sidecar if sidecar in known else None,
        )


def walk_files(folder: str, skip: str | None = None) -> list[str]:
    """Relative paths (with /) of all files below a folder, without hidden ones, thumbnails, and the folder `skip`."""
    seen = {Path(skip).resolve()} if skip else set[Path]()
    files: list[str] = []
    stack = [""]
    while stack:
        below = stack.pop()
        for entry in scan(Path(folder, below)):
            if entry.name.startswith(".") or entry.name.lower() in SKIPPED_FOLDERS or not is_utf8(entry.name):
                continue
            relative = f"{below}/{entry.name}" if below else entry.name
            if not entry.is_dir():
                files.append(relative)
                continue
            real = Path(entry.path).resolve()
            if real not in seen:  # links are followed, circles are not
                seen.add(real)
                stack.append(relative)
    return sorted(files)


def scan(folder: Path) -> list[os.DirEntry[str]]:
    """Entries of a folder by name; an absent or closed folder has none."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return []


def is_utf8(name: str) -> bool:
    """Whether a file name can be written into tables; the index job complains about those that cannot."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_photo(relative: str) -> bool:
    """Whether a file counts as found: everything but captions, tables and the like."""
    return relative[len(without_ending(relative)) :].lower() not in NOT_PHOTOS


def join(folder: str, relative: str) -> str:
    return str(PurePosixPath(folder) / relative)


def without_ending(path: str) -> str:
    """A path without the last dot of its name and what follows; whole where the dot is the name's first or last sign.

    As PurePosixPath does it, but fast: each Snakemake start does it for every photo.
    """
    dot, name = path.rfind("."), path.rfind("/") + 1
    return path[:dot] if name < dot < len(path) - 1 else path


def with_ending(path: str, ending: str) -> str:
    return without_ending(path) + ending


def sidecar_of(path: str) -> str:
    """Where a photo's caption may lie: the same name with .txt."""
    return with_ending(path, SIDECAR_ENDING)


def shard_of(name: str, shards: int) -> int:
    """Which shard a photo or pair belongs to, from 0; depends on its name only."""
    return zlib.crc32(name.encode()) % shards


def slug(text: str) -> str:
    """Turn any text into a name of small letters, digits and hyphens, at most 120 long.

    Accents fall away; letters that have no Latin form become their code point, so that they stay apart.
    """
    if text.isascii():  # most names by far; what follows says the same of them
        return shortened(OTHER_SIGNS.sub("-", text.lower()).strip("-"), text)
    parts: list[str] = []
    for character in unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold()):
        if character.isascii() and character.isalnum():
            parts.append(character)
        elif unicodedata.combining(character):
            continue
        elif character.isalnum():
            parts.append(f"-u{ord(character):x}-")
        else:
            parts.append("-")
    return shortened("-".join(part for part in "".join(parts).split("-") if part), text)


def shortened(name: str, text: str) -> str:
    """A name that is neither empty nor too long; `text` is what it was made of."""
    if len(name) > MAX_NAME:
        name = f"{name[: MAX_NAME - 9].rstrip('-')}-{short_hash(text, 8)}"
    return name or "photo"


def names_of(relatives: Sequence[str], paths: Sequence[str]) -> list[str]:
    """Name files by their relative paths: without the ending, where two would be alike with it, and where even that
    is alike (other folders) with a short hash of the configured path. The order of files and folders changes nothing.
    """
    levels = [0] * len(relatives)
    while True:
        names = [name_at(level, relative, path) for level, relative, path in zip(levels, relatives, paths, strict=True)]
        counts = Counter(names)
        clashing = [index for index, name in enumerate(names) if counts[name] > 1]
        if not clashing:
            return names
        for index in clashing:
            levels[index] += 1
            assert levels[index] <= 3, f"listed twice: {paths[index]}"


def name_at(level: int, relative: str, path: str) -> str:
    """One of the ever longer names of a file."""
    if level == 0:
        return slug(without_ending(relative))
    return slug(relative) if level == 1 else f"{slug(relative)}-{short_hash(path, 8 if level == 2 else 32)}"


def short_hash(text: str, length: int) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:length]
