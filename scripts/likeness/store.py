"""Content-addressed results of single items: what was paid for once is never computed again.

An item is one small JSON record and any number of files. Its key is the sha256 of everything that the result depends
on (stage, stage version, settings slice, model fingerprint, content), so equal keys mean equal results and writing one
twice is harmless: subjects, processes and nodes share a store without locks. Files are kept once under their own
sha256; a record carries the hash of itself, so that a torn or flipped item is found and counts as absent. An item whose
files are damaged counts as absent too, so whoever makes it heals it; a reader that is not the maker raises
DamagedFileError (likeness/healing.py says what follows).

Layout below the root:  items/<stage>/<key[:2]>/<key>.json   blobs/<sha[:2]>/<sha>
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import socket
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from likeness.errors import DamagedFileError, disk_error


def canonical_json(value: Any) -> str:
    """Write a value as JSON that is equal for equal values: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_of_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def item_key(stage: str, version: int, settings: Any, fingerprint: str, content: Any) -> str:
    """Name a result by all that it depends on; `content` is a hash, or any JSON value made of hashes and numbers."""
    return sha256_of_bytes(canonical_json([stage, version, settings, fingerprint, content]).encode())


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file that appears whole or not at all, through a temporary file beside it and a rename.

    UserError where the disk is full or closed; what lay there before stays.
    """
    temporary = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(path.parent)
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise disk_error(error, path) from error


def temporary_beside(path: Path) -> Path:
    """A name for a file under construction: hidden, used once, and saying which process on which machine made it."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.{os.getpid()}@{socket.gethostname()}.tmp")


@functools.cache
def clear_leftovers(folder: Path) -> None:
    """Remove what killed processes of this machine left half-written in a folder; once a folder and process."""
    for path in folder.glob(".*.tmp"):
        found = LEFTOVER.search(path.name)
        if found and found["host"] == socket.gethostname() and not Path("/proc", found["process"]).exists():
            path.unlink(missing_ok=True)


LEFTOVER = re.compile(r"\.(?P<process>\d+)@(?P<host>.+)\.tmp$")


@dataclass(frozen=True)
class Work:
    """What a program did: items computed and items found stored, by stage, and how many models it loaded.

    Its text is the last line of every stage's log, `work: faces 3 computed, 17 reused; models loaded 1`, and
    `work: no items; models loaded 0` for a stage that has none.
    """

    computed: Mapping[str, int] = field(default_factory=dict)
    reused: Mapping[str, int] = field(default_factory=dict)
    models_loaded: int = 0

    def __str__(self) -> str:
        stages = sorted(set(self.computed) | set(self.reused))
        items = [f"{name} {self.computed.get(name, 0)} computed, {self.reused.get(name, 0)} reused" for name in stages]
        return f"work: {'; '.join(items) or 'no items'}; models loaded {self.models_loaded}"


@dataclass(frozen=True)
class Item:
    """One stored result: a JSON record, and the sha256 of each of its files by name."""

    key: str
    record: dict[str, Any]
    files: dict[str, str]


@dataclass
class Store:
    """The store below one root folder; `computed` and `reused` count items by stage."""

    root: Path
    computed: Counter[str] = field(default_factory=Counter)
    reused: Counter[str] = field(default_factory=Counter)

    def item_path(self, stage: str, key: str) -> Path:
        return self.root / "items" / stage / key[:2] / f"{key}.json"

    def blob_path(self, sha256: str) -> Path:
        return self.root / "blobs" / sha256[:2] / sha256

    def load(self, stage: str, key: str) -> Item | None:
        """Read an item; None when it is absent, torn, or one of its files is missing or damaged."""
        try:
            stored = json.loads(self.item_path(stage, key).read_bytes())
            body = {"record": stored["record"], "files": stored["files"]}
            if stored["sha256"] != sha256_of_bytes(canonical_json(body).encode()):
                return None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if not all(self.holds(sha256) for sha256 in stored["files"].values()):
            return None
        return Item(key, stored["record"], stored["files"])

    def save(self, stage: str, key: str, record: Mapping[str, Any], files: Mapping[str, bytes] | None = None) -> Item:
        """Write an item: its files first, its record last, so that a record never points at nothing."""
        hashes = {name: self.save_blob(data) for name, data in sorted((files or {}).items())}
        body = {"record": dict(record), "files": hashes}
        digest = sha256_of_bytes(canonical_json(body).encode())
        write_atomically(self.item_path(stage, key), canonical_json({**body, "sha256": digest}).encode())
        return Item(key, dict(record), hashes)

    def load_or_compute(
        self, stage: str, key: str, compute: Callable[[], tuple[Mapping[str, Any], Mapping[str, bytes]]]
    ) -> Item:
        """Read an item, or make it with `compute() -> (record, files)` and keep it."""
        item = self.load(stage, key)
        if item is not None:
            self.reused[stage] += 1
            return item
        record, files = compute()
        self.computed[stage] += 1
        return self.save(stage, key, record, files)

    def holds(self, sha256: str) -> bool:
        """Say whether these bytes are in the store, undamaged; a damaged file is removed."""
        path = self.blob_path(sha256)
        try:
            if sha256_of_file(path) == sha256:
                return True
        except FileNotFoundError:
            return False
        path.unlink(missing_ok=True)
        return False

    def save_blob(self, data: bytes) -> str:
        """Keep bytes under their own sha256 and return it."""
        digest = sha256_of_bytes(data)
        if not self.holds(digest):
            write_atomically(self.blob_path(digest), data)
        return digest

    def read_blob(self, sha256: str) -> bytes:
        """Read bytes and check them; DamagedFileError where they are missing or changed, which removes them."""
        path = self.blob_path(sha256)
        data = path.read_bytes() if path.exists() else b""
        if sha256_of_bytes(data) != sha256:
            path.unlink(missing_ok=True)
            raise damaged(path, sha256)
        return data

    def path_of(self, sha256: str) -> Path:
        """Where a stored file lies, for readers that need a path; its bytes are checked as by `read_blob`."""
        if not self.holds(sha256):
            raise damaged(self.blob_path(sha256), sha256)
        return self.blob_path(sha256)

    def read(self, item: Item, name: str) -> bytes:
        return self.read_blob(item.files[name])

    def restore(self, sha256: str, path: Path) -> None:
        """Put a stored file at `path` unless the right bytes lie there already (by-products that others delete)."""
        if path.exists() and sha256_of_file(path) == sha256:
            return
        write_atomically(path, self.read_blob(sha256))

    def work(self, models_loaded: int = 0) -> Work:
        """What was done through this store so far, for the end of a program."""
        return Work(dict(self.computed), dict(self.reused), models_loaded)


def damaged(path: Path, sha256: str) -> DamagedFileError:
    """What a reader raises that is not the maker of the file."""
    return DamagedFileError(
        f"{path}: the stored file is damaged or missing. Run the same command again and it is made anew.", sha256
    )


def remove_tree(path: Path) -> None:
    """Remove a temporary folder if it is there."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)
