"""The store: equal keys, whole items or none, damaged bytes found by their hash."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from likeness.errors import UserError
from likeness.store import Store, Work, canonical_json, item_key, write_atomically


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


def test_a_flipped_bit_is_named_and_healed_by_the_next_run(store: Store) -> None:
    item = store.save("faces", "12" * 32, {}, {"crop": b"png"})
    store.blob_path(item.files["crop"]).write_bytes(b"pnh")
    with pytest.raises(UserError, match="damaged"):
        store.read(item, "crop")
    assert store.load("faces", "12" * 32) is None


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
