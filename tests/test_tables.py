"""Tables: documented, sorted, byte-identical for identical content."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from likeness.code import SCRIPTS
from likeness.errors import UserError
from likeness.tables import FACES, LOG, MANIFEST, TABLES, merge_tables, read_rows, read_table, table_of, write_table
from likeness.tables_surgery import SURGERY_TABLES

ALL = TABLES | SURGERY_TABLES


@pytest.mark.parametrize("table", ALL.values(), ids=ALL)
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
    with pytest.raises(UserError, match="no table `faces` of this version"):
        read_table(tmp_path / "log.parquet", FACES)


def test_rows_are_sorted_as_arrow_sorts_them() -> None:
    """Oracle: Arrow's own sort, of names beyond Latin and of numbers that may be null."""
    random = Random(0)
    names = ["a", "B", "ä", "Z", "写", "\U0001f600", "", "a-1", "a1"]
    rows = [
        {"id": name, "role": role, "face": face}
        for name in names
        for role in ("photo", "target")
        for face in (None, 0, 2, 10)
    ]
    random.shuffle(rows)
    unsorted = pa.table({name: [row[name] for row in rows] for name in ("id", "role", "face")})
    expected = unsorted.sort_by([(name, "ascending") for name in ("id", "role", "face")])
    assert table_of(FACES, rows).select(["id", "role", "face"]).to_pylist() == expected.to_pylist()


def test_tables_are_written_and_read_without_pandas(tmp_path: Path) -> None:
    """Arrow would import it for the first list; who asks for it still gets it."""
    program = (
        "import sys; from pathlib import Path\n"
        "from likeness.tables import FACES, read_rows, read_table, write_table\n"
        f"path = Path({str(tmp_path / 'faces.parquet')!r})\n"
        "write_table(path, FACES, [{'id': 'a', 'role': 'photo'}])\n"
        "assert read_rows(path, FACES)[0]['id'] == 'a'\n"
        "print([name for name in ('pandas', 'pyarrow.compute') if name in sys.modules])\n"
        "print(list(read_table(path).to_pandas()['id']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": str(SCRIPTS)}, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == ["[]", "['a']"], done.stderr
