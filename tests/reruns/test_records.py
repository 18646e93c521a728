"""Snakemake's records and benchmark files are found under their names, and torn ones are passed over."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from likeness.reruns.records import read_records, record_path, seconds_of


def note(folder: Path, output: str, **changes: object) -> None:
    """Write a record as Snakemake does: long names go on in folders."""
    name = base64.urlsafe_b64encode(output.encode()).decode()
    parts = [name[start : start + 254] for start in range(0, len(name), 254)]
    path = folder.joinpath(*[f"@{part}" for part in parts[:-1]], parts[-1])
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = json.dumps({"settings": {"rank": 4}, "code": "abc"})
    record = {"log": ["results/.logs/train_lora/jane.log"], "input": ["a"], "input_checksums": {"a": "sha256:1"}}
    record |= {"params": [repr("results/.store"), repr(settings)], "endtime": 12.5}
    path.write_text(json.dumps(record | changes))


def test_records_are_read_under_short_and_long_names(tmp_path: Path) -> None:
    long = f"results/{'x' * 300}.parquet"
    note(tmp_path, "results/a.parquet")
    note(tmp_path, long, params=[])
    (tmp_path / "bm9uZQ==").write_text("{torn")
    found = {record.output: record for record in read_records(tmp_path)}
    assert set(found) == {"results/a.parquet", long}
    first = found["results/a.parquet"]
    assert (first.name, first.inputs, first.checksums) == ("train_lora/jane", ("a",), {"a": "sha256:1"})
    assert first.settings == {"settings": {"rank": 4}, "code": "abc"} and first.ended_s == 12.5
    assert found[long].settings is None
    for output in found:
        assert record_path(output, tmp_path).is_file()


def test_times_come_from_the_last_line_of_the_benchmark_file(tmp_path: Path) -> None:
    (tmp_path / "train_lora").mkdir()
    (tmp_path / "train_lora" / "jane.tsv").write_text("s\th:m:s\n1.5\t0:00:01\n2.5\t0:00:02\n")
    assert seconds_of("train_lora/jane", tmp_path) == 2.5
    assert seconds_of("train_lora/joe", tmp_path) is None


@pytest.mark.parametrize(
    ("last", "seconds"),
    [
        ("work: training-steps 0 computed, 4 reused; models loaded 0", None),
        ("work: latents 0 computed, 4 reused; embeddings 1 computed, 3 reused; models loaded 1", 2.5),
        ("work: latents 0 computed, 0 reused; models loaded 0", 2.5),
        ("work: no items; models loaded 0", 2.5),
        ("work: faces 0 computed, 4 reused; models loaded 0\nerror: the disk is full", 2.5),
        ("", 2.5),
    ],
)
def test_a_run_that_found_everything_in_the_store_says_nothing_of_the_next(
    tmp_path: Path, last: str, seconds: float | None
) -> None:
    for ending, text in ((".tsv", "s\n2.5\n"), (".log", f"some words: 1 computed, 2 reused\n{last}\n")):
        (tmp_path / f"job{ending}").write_text(text)
    assert seconds_of("job", tmp_path, tmp_path) == seconds
