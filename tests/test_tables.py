"""Tables: documented, sorted, byte-identical for identical content."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from likeness.errors import UserError
from likeness.tables import FACES, LOG, MANIFEST, TABLES, merge_tables, read_rows, read_table, write_table


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_every_column_says_what_it_means(table) -> None:
    names = [column.name for column in table.columns]
    assert len(names) == len(set(names))
    assert all(column.meaning for column in table.columns)
    assert set(table.sort_by) <= set(names)


def rows() -> list[dict]:
    return [
        {"id": name, "role": "photo", "face": 0, "x0": 1.5, "landmarks": [1.0, 2.0], "status": "ok", "reason": ""}
        for name in "cab"
    ]


def test_the_order_of_rows_does_not_change_the_bytes(tmp_path: Path) -> None:
    write_table(tmp_path / "one.parquet", FACES, rows(), {"stage": "faces"})
    write_table(tmp_path / "two.parquet", FACES, rows()[::-1], {"stage": "faces"})
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    assert [row["id"] for row in read_rows(tmp_path / "one.parquet", FACES)] == ["a", "b", "c"]


def test_metadata_says_how_it_was_made_and_a_manifest_carries_none(tmp_path: Path) -> None:
    write_table(tmp_path / "faces.parquet", FACES, rows(), {"stage": "faces", "version": 1})
    write_table(
        tmp_path / "main.parquet", MANIFEST, [{"sample_id": "x", "image_sha256": "y", "caption": "c", "repeats": 1}]
    )
    assert pq.read_schema(tmp_path / "faces.parquet").metadata[b"likeness"] == b'{"stage":"faces","version":1}'
    assert pq.read_schema(tmp_path / "main.parquet").metadata is None


def test_merging_is_the_same_for_any_order_of_shards(tmp_path: Path) -> None:
    for name, row in zip("012", rows(), strict=True):
        write_table(tmp_path / f"{name}.parquet", FACES, [row])
    paths = sorted(tmp_path.glob("*.parquet"))
    assert merge_tables(paths, FACES).equals(merge_tables(paths[::-1], FACES))
    assert merge_tables([], FACES).num_rows == 0


def test_an_unknown_column_is_our_own_bug(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="unknown columns"):
        write_table(tmp_path / "log.parquet", LOG, [{"stepp": 1}])


def test_missing_and_foreign_tables_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="missing"):
        read_table(tmp_path / "none.parquet")
    write_table(tmp_path / "log.parquet", LOG, [{"step": 1}])
    with pytest.raises(UserError, match="not a faces table"):
        read_table(tmp_path / "log.parquet", FACES)
