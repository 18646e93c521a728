"""Many small results in few files: items of the store that are one line each, where a job makes thousands of them.

A pack is a text file of records, one a line: the item's key (as in `store.py`), a space, and the record as canonical JSON.
It is called by the sha256 of its own bytes and never changes, so that several processes and nodes share a stage's
packs without locks, a damaged one is found by its name and counts as absent, and equal records in two packs are harmless.
A job reads all packs of its stage, whatever photos or shards they were made for. When they become many they are joined:
the joined pack is written before the others go, so that every record is in some pack at any time.

Layout below the store's root:  packs/<stage>/<sha256>
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from likeness.store import Store, canonical_json, sha256_of_bytes, write_atomically

RECORDS_PER_PACK = 1000
"""So many new records are written at once: what a killed job computed before is not lost."""
MOST_PACKS = 64
"""More packs than this are joined into one."""


class PackedItems:
    """The packed items of one stage; a context manager, which writes new records at its end, however that comes.

    Counts computed and reused items in the store, as the store's own items are counted.
    """

    def __init__(self, store: Store, stage: str) -> None:
        self.store, self.stage = store, stage
        self.folder = store.root / "packs" / stage
        self._stored: dict[str, bytes] = {}
        self._new: dict[str, bytes] = {}

    def __enter__(self) -> PackedItems:
        self._stored = dict(records_of(read_packs(self.folder)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write()

    def find(self, key: str) -> dict[str, Any] | None:
        """The record of a key, which counts as reused; None where none is stored."""
        stored = self._stored.get(key)
        if stored is None:
            return None
        self.store.reused[self.stage] += 1
        return json.loads(stored)

    def keep(self, key: str, record: Mapping[str, Any]) -> None:
        """Keep a record that was computed."""
        self.store.computed[self.stage] += 1
        self._stored[key] = self._new[key] = canonical_json(dict(record)).encode()
        if len(self._new) >= RECORDS_PER_PACK:
            self._write()

    def load_or_compute(self, key: str, compute: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Read the record of a key, or make it with `compute()` and keep it."""
        record = self.find(key)
        if record is None:
            record = dict(compute())
            self.keep(key, record)
        return record

    def _write(self) -> None:
        if self._new:
            write_pack(self.folder, self._new)
            self._new = {}
            join_packs(self.folder)


def write_pack(folder: Path, records: Mapping[str, bytes]) -> Path:
    """Write records as one pack, sorted by key."""
    data = b"".join(b"%s %s\n" % (key.encode(), records[key]) for key in sorted(records))
    path = folder / sha256_of_bytes(data)
    write_atomically(path, data)
    return path


def records_of(packs: Mapping[Path, bytes]) -> Iterator[tuple[str, bytes]]:
    """Every (key, record as JSON) of some packs."""
    for data in packs.values():
        for line in data.splitlines():
            key, _, record = line.partition(b" ")
            yield key.decode(), record


def read_packs(folder: Path) -> dict[Path, bytes]:
    """All packs of a stage; a damaged one is removed, as its name is not the hash of its bytes."""
    packs: dict[Path, bytes] = {}
    while True:
        missed = False
        for path in sorted(path for path in folder.glob("*") if not path.name.startswith(".") and path not in packs):
            try:
                data = path.read_bytes()
            except FileNotFoundError:  # joined by another process since: its records lie in a pack that is new
                missed = True
                continue
            if sha256_of_bytes(data) == path.name:
                packs[path] = data
            else:
                path.unlink(missing_ok=True)
        if not missed:
            return packs


def join_packs(folder: Path) -> None:
    """Join a stage's packs where they have become many."""
    names = [path for path in folder.glob("*") if not path.name.startswith(".")]
    if len(names) <= MOST_PACKS:
        return
    packs = read_packs(folder)
    joined = write_pack(folder, dict(records_of(packs)))
    for path in packs:
        if path != joined:
            path.unlink(missing_ok=True)
