"""By-products that are gone raise a job's number by one, from what Snakemake noted, until they are back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from likeness.reruns.records import record_path
from likeness.workflow_restore import gone, times_restored

RECORD = "results/robin/lora/published.json"


@pytest.fixture
def lora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a published LoRA."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "results" / "robin" / "lora"
    folder.mkdir(parents=True)
    names = ["README.md", "robin.safetensors"]
    for name in names:
        (folder / name).touch()
    (folder / "published.json").write_text(json.dumps({"files": dict.fromkeys([*names, "archive/ab/README.md"], "")}))
    return folder


def note(times: int) -> None:
    """Let Snakemake have noted a number."""
    path = record_path(RECORD)
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {"settings": {}, "code": "abc"} | ({"restored": times} if times else {})
    record = {"log": [], "input": [], "input_checksums": {}, "endtime": 1, "params": [repr(json.dumps(settings))]}
    path.write_text(json.dumps(record))


def test_nothing_gone_leaves_the_number_as_it_was_noted(lora: Path) -> None:
    assert gone("publish_lora", "robin") == [] and times_restored("publish_lora", "robin") == 0
    for times in (0, 3):
        note(times)
        assert times_restored("publish_lora", "robin") == times


def test_a_file_that_is_gone_raises_the_number(lora: Path) -> None:
    note(3)
    (lora / "README.md").unlink()
    assert gone("publish_lora", "robin") == ["results/robin/lora/README.md"]
    assert times_restored("publish_lora", "robin") == 4


def test_without_the_declared_output_nothing_counts_as_gone(lora: Path) -> None:
    (lora / "README.md").unlink()
    (lora / "published.json").unlink()
    assert gone("publish_lora", "robin") == [] and times_restored("publish_lora", "robin") == 0


@pytest.mark.parametrize("text", ["{torn", "[]", '{"reason": "no choice"}', '{"files": null}'])
def test_a_record_without_files_asks_for_none(lora: Path, text: str) -> None:
    (lora / "published.json").write_text(text)
    assert gone("publish_lora", "robin") == []


def test_captions_csv_belongs_to_its_table(lora: Path) -> None:
    assert gone("merge_captions", "robin") == []
    (lora.parent / "captions.parquet").touch()
    assert gone("merge_captions", "robin") == ["results/robin/captions.csv"]
    assert times_restored("merge_captions", "robin") == 1
    (lora.parent / "captions.csv").touch()
    assert times_restored("merge_captions", "robin") == 0
