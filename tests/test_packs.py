"""Packed items: found again whoever packed them, written at every end, never torn, and few files however many jobs."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Mapping
from pathlib import Path

import pytest

from likeness import packs
from likeness.packs import PackedItems, read_packs
from likeness.store import Store, item_key


def key(number: int) -> str:
    return item_key("squares", 1, None, "", number)


def square(store: Store, *numbers: int) -> list[int]:
    """Squares of numbers by one job."""
    with PackedItems(store, "squares") as items:
        return [items.load_or_compute(key(number), lambda n=number: {"square": n * n})["square"] for number in numbers]


def packs_of(store: Store) -> list[Path]:
    return sorted((store.root / "packs" / "squares").iterdir())


def test_what_one_job_packed_another_finds(tmp_path: Path) -> None:
    first, second = Store(tmp_path), Store(tmp_path)
    assert square(first, 1, 2, 2) == [1, 4, 4]
    assert str(first.work()) == "work: squares 2 computed, 1 reused; models loaded 0"
    assert square(second, 2, 3) == [4, 9]
    assert str(second.work()) == "work: squares 1 computed, 1 reused; models loaded 0"
    assert len(packs_of(first)) == 2


def test_a_job_with_nothing_new_writes_nothing(tmp_path: Path) -> None:
    square(Store(tmp_path), 1)
    before = {path: path.stat().st_mtime_ns for path in packs_of(Store(tmp_path))}
    square(Store(tmp_path), 1)
    assert {path: path.stat().st_mtime_ns for path in packs_of(Store(tmp_path))} == before


def test_the_same_records_are_the_same_pack_whatever_their_order(tmp_path: Path) -> None:
    square(Store(tmp_path / "a"), 1, 2, 3)
    square(Store(tmp_path / "b"), 3, 1, 2)
    (one,), (other,) = packs_of(Store(tmp_path / "a")), packs_of(Store(tmp_path / "b"))
    assert one.name == other.name and one.read_bytes() == other.read_bytes()


def test_a_job_that_fails_keeps_what_it_computed(tmp_path: Path) -> None:
    def fail() -> Mapping[str, int]:
        raise OSError("the disk fails")

    with pytest.raises(OSError, match="the disk fails"), PackedItems(Store(tmp_path), "squares") as items:
        items.load_or_compute(key(1), lambda: {"square": 1})
        items.load_or_compute(key(2), fail)
    again = Store(tmp_path)
    assert square(again, 1, 2) == [1, 4]
    assert (again.computed["squares"], again.reused["squares"]) == (1, 1)


def test_a_killed_job_loses_only_its_last_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its end: records are written whenever enough have come together."""
    monkeypatch.setattr(packs, "RECORDS_PER_PACK", 10)
    items = PackedItems(Store(tmp_path), "squares").__enter__()
    for number in range(25):
        items.load_or_compute(key(number), lambda n=number: {"square": n * n})
    again = Store(tmp_path)
    square(again, *range(25))
    assert (again.computed["squares"], again.reused["squares"]) == (5, 20)


@pytest.mark.parametrize("harm", ["flipped", "truncated", "emptied"])
def test_a_damaged_pack_is_found_by_its_name_and_made_again(tmp_path: Path, harm: str) -> None:
    square(Store(tmp_path), 1, 2)
    square(Store(tmp_path), 3)
    path = next(path for path in packs_of(Store(tmp_path)) if key(1).encode() in path.read_bytes())
    data = bytearray(path.read_bytes())
    data[70] ^= 1
    path.write_bytes({"flipped": bytes(data), "truncated": bytes(data[:-5]), "emptied": b""}[harm])
    again = Store(tmp_path)
    assert square(again, 1, 2, 3) == [1, 4, 9]
    assert (again.computed["squares"], again.reused["squares"]) == (2, 1)
    assert all(json.loads(line.split(b" ", 1)[1]) for one in packs_of(again) for line in one.read_bytes().splitlines())


def test_many_packs_are_joined_and_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "MOST_PACKS", 5)
    for number in range(20):
        square(Store(tmp_path), number)
        assert 1 <= len(packs_of(Store(tmp_path))) <= 5
    again = Store(tmp_path)
    square(again, *range(20))
    assert (again.computed["squares"], again.reused["squares"]) == (0, 20)


def test_a_reader_follows_packs_that_are_joined_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the packs listed first all vanish before they are read, as another process joins them."""
    for number in range(4):
        square(Store(tmp_path), number)
    folder, read = tmp_path / "packs" / "squares", Path.read_bytes
    joined = []

    def read_late(path: Path) -> bytes:
        if not joined:
            joined.append(True)
            monkeypatch.setattr(packs, "MOST_PACKS", 1)
            packs.join_packs(folder)
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", read_late)
    assert {name for name, _ in packs.records_of(read_packs(folder))} == {key(number) for number in range(4)}


def square_often(root: Path, numbers: list[int]) -> None:
    packs.MOST_PACKS = 3
    for number in numbers:
        assert square(Store(root), number) == [number * number]


def test_processes_share_packs_while_they_are_joined(tmp_path: Path) -> None:
    """Several processes pack overlapping numbers and join all the while: nothing that was written is lost."""
    context = multiprocessing.get_context("fork")
    jobs = [
        context.Process(target=square_often, args=(tmp_path, list(range(start, start + 30)))) for start in (0, 10, 20)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0, 0, 0]
    again = Store(tmp_path)
    square(again, *range(50))
    assert (again.computed["squares"], again.reused["squares"]) == (0, 50)
    assert not list((tmp_path / "packs" / "squares").glob(".*"))
