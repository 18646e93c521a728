"""The store: equal keys, whole items or none, damaged bytes found by their hash."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from likeness.errors import DamagedFileError, UserError
from likeness.store import (
    Store,
    Work,
    canonical_json,
    clear_leftovers,
    item_key,
    temporary_beside,
    write_atomically,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_an_item_comes_back_as_it_was_saved(store: Store) -> None:
    saved = store.save("faces", "ab" * 32, {"n": 1, "boxes": [[0.5, 1.0]]}, {"crop": b"png"})
    loaded = store.load("faces", "ab" * 32)
    assert loaded == saved
    assert store.read(saved, "crop") == b"png"


def test_compute_runs_once_a_key_and_is_counted(store: Store) -> None:
    calls = []

    def compute() -> tuple[dict, dict]:
        calls.append(1)
        return {"x": 1}, {}

    for _ in range(3):
        assert store.load_or_compute("masks", "00" * 32, compute).record == {"x": 1}
    assert len(calls) == 1
    assert str(store.work(models_loaded=1)) == "work: masks 1 computed, 2 reused; models loaded 1"
    assert str(Work()) == "work: no items; models loaded 0"


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-7], lambda data: data.replace(b'"n":1', b'"n":2'), lambda data: b""]
)
def test_a_damaged_record_counts_as_absent(store: Store, damage) -> None:
    store.save("faces", "cd" * 32, {"n": 1})
    path = store.item_path("faces", "cd" * 32)
    path.write_bytes(damage(path.read_bytes()))
    assert store.load("faces", "cd" * 32) is None


def test_a_record_without_its_file_counts_as_absent(store: Store) -> None:
    item = store.save("faces", "ef" * 32, {}, {"crop": b"png"})
    store.blob_path(item.files["crop"]).unlink()
    assert store.load("faces", "ef" * 32) is None


DAMAGE = {
    "flipped": lambda data: data[:5] + bytes([data[5] ^ 16]) + data[6:],
    "truncated": lambda data: data[:-7],
    "emptied": lambda data: b"",
    "grown": lambda data: data + b"x",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_made_again_by_its_maker_in_the_same_run(store: Store, damage) -> None:
    item = store.save("faces", "12" * 32, {}, {"crop": b"png of a face"})
    path = store.blob_path(item.files["crop"])
    path.write_bytes(damage(path.read_bytes()))
    assert store.load("faces", "12" * 32) is None and not path.exists()
    healed = store.load_or_compute("faces", "12" * 32, lambda: ({}, {"crop": b"png of a face"}))
    assert (store.computed["faces"], store.reused["faces"]) == (1, 0)
    assert store.read(healed, "crop") == b"png of a face"


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_named_to_other_readers_and_removed(store: Store, tmp_path: Path, damage) -> None:
    for read in (store.read_blob, store.path_of, lambda sha256: store.restore(sha256, tmp_path / "crop.png")):
        sha256 = store.save_blob(b"png of a face")
        path = store.blob_path(sha256)
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(DamagedFileError, match=sha256) as raised:
            read(sha256)
        assert raised.value.sha256 == sha256 and not path.exists()
    assert not (tmp_path / "crop.png").exists()


def test_a_damaged_file_is_overwritten_by_equal_bytes(store: Store) -> None:
    sha256 = store.save_blob(b"latents")
    store.blob_path(sha256).write_bytes(b"lateNts")
    assert store.save_blob(b"latents") == sha256
    assert store.read_blob(sha256) == b"latents"


def test_restore_writes_only_what_differs(store: Store, tmp_path: Path) -> None:
    sha = store.save_blob(b"mask")
    path = tmp_path / "images" / "a.png"
    store.restore(sha, path)
    before = path.stat().st_mtime_ns
    store.restore(sha, path)
    assert path.stat().st_mtime_ns == before
    path.write_bytes(b"edited by somebody")
    store.restore(sha, path)
    assert path.read_bytes() == b"mask"


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "table.parquet"
    write_atomically(path, b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(UserError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_leftovers_of_killed_processes_are_cleared_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    own = temporary_beside(tmp_path / "table.parquet")
    killed = own.with_name(own.name.replace(f".{os.getpid()}@", f".{dead.pid}@"))
    elsewhere = own.with_name(own.name.replace(socket.gethostname(), "another-node"))
    for path in (own, killed, elsewhere):
        path.write_bytes(b"half")
    clear_leftovers.cache_clear()
    write_atomically(tmp_path / "table.parquet", b"whole")
    assert set(tmp_path.iterdir()) == {own, elsewhere, tmp_path / "table.parquet"}


WRITER = """
import os, random, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from likeness.store import Store
store, name, dies_at = Store(Path(sys.argv[2])), sys.argv[3], int(sys.argv[4])
numbers = list(range(60))
random.Random(name).shuffle(numbers)
for count, number in enumerate(numbers):
    for owner in ("all", name):
        data = f"{owner}-{number}".encode() * 4000
        store.save("stress", f"{number:02d}-{owner}", {"n": number}, {"a": data, "shared": b"s" * 100_000})
    if count == dies_at:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_processes_that_write_equal_and_different_keys_never_tear(store: Store) -> None:
    """Six writers, of which two are killed on the way, and a reader that looks all the time."""
    scripts = str(Path(__file__).resolve().parents[1] / "scripts")
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, scripts, str(store.root), f"w{number}", str(dies_at)])
        for number, dies_at in enumerate((99, 20, 99, 99, 40, 99))
    ]

    def check(key: str) -> None:
        item = store.load("stress", key)
        assert item is not None, f"{key} was there and is torn or gone"
        number, owner = key.split("-")
        assert item.record == {"n": int(number)}
        assert store.read(item, "a") == f"{owner}-{int(number)}".encode() * 4000

    looks = 0
    while any(writer.poll() is None for writer in writers):
        for path in list((store.root / "items").rglob("*.json")):
            if not path.name.startswith("."):
                check(path.stem)
                looks += 1
    assert looks > 100
    assert [writer.returncode for writer in writers] == [0, -9, 0, 0, -9, 0]
    owners = ["all", *(f"w{place}" for place in (0, 2, 3, 5))]
    for key in {f"{number:02d}-{owner}" for owner in owners for number in range(60)}:
        check(key)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_canonical_json_depends_on_the_value_alone(value: object) -> None:
    again = json.loads(json.dumps(value))
    assert canonical_json(again) == canonical_json(value)


@given(st.permutations(["stage", 1, "settings", "fingerprint", "content"]))
def test_keys_tell_their_parts_apart(parts: list) -> None:
    reference = ["stage", 1, "settings", "fingerprint", "content"]
    same = item_key(*parts) == item_key(*reference)  # type: ignore[arg-type]
    assert same == (parts == reference)
