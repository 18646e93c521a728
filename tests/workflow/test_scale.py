"""The workflow's own cost on many photos stays small: processor time, memory and files, on the benchmark's project."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.workflow.project import HOUSE, read_work

from likeness.tables import DECISIONS, QUALITY, read_rows

PHOTOS = 1000
START_S = 1.5
"""CPU seconds that a job may take to start and to write its table, on a slow machine; half of that where nothing disturbs."""
INDEX_OVER_BARE = 1.6
"""What indexing may cost beside reading, hashing and decoding; 1.15 was measured."""


@pytest.fixture(scope="module")
def benched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The benchmark's project after a fresh run, one with nothing to do and one after an edit, with its figures."""
    folder = tmp_path_factory.mktemp("scale")
    command = [sys.executable, str(HOUSE / "benchmarks" / "bench_scale.py"), "--photos", str(PHOTOS)]
    command += ["--folder", str(folder / "project"), "--json", str(folder / "figures.json")]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "project", json.loads((folder / "figures.json").read_text())


def cpu_s(project: Path, rule: str) -> tuple[float, int]:
    """CPU seconds of a rule's jobs by Snakemake's benchmark files, and their number."""
    files = sorted((project / "results" / ".benchmarks" / rule).rglob("*.tsv"))
    rows = [row for path in files for row in csv.DictReader(path.open(), delimiter="\t")]
    return sum(float(row["cpu_time"]) for row in rows), len(files)


@pytest.mark.long
def test_many_photos_cost_little_more_than_decoding_them(benched: tuple[Path, dict[str, Any]]) -> None:
    project, figures = benched
    costs = figures["costs"]
    bare_s = min(costs["bare"]["cpu_s"], costs["bare again"]["cpu_s"])
    # The benchmark file of the edited shard is that of its second run, which decoded one photo: three quarters are left.
    spent_s, jobs = cpu_s(project, "index_photos")
    assert jobs == 4 and spent_s <= 0.75 * INDEX_OVER_BARE * bare_s + jobs * START_S
    for rule in ("detect_faces", "make_masks", "measure_quality", "write_captions", "merge_photos", "merge_quality"):
        spent_s, jobs = cpu_s(project, rule)
        assert jobs >= 1 and spent_s <= jobs * START_S, rule
    assert costs["nothing to do"]["cpu_s"] <= 8
    assert costs["one photo edited"]["cpu_s"] <= costs["nothing to do"]["cpu_s"] + 11 * START_S
    assert figures["snakemake_memory_mb"] < 1000 and figures["snakemake_files"] < 200
    assert figures["store_files"] == 5, "a pack for each shard, and one for the edited photo"


@pytest.mark.slow
def test_an_edited_photo_alone_is_decoded(benched: tuple[Path, dict[str, Any]]) -> None:
    logs = sorted((benched[0] / "results" / ".logs" / "index_photos" / "many").glob("*.log"))
    work = [read_work(path.read_text(encoding="utf-8")) for path in logs]
    counts = sorted((one.computed["photos"], one.reused["photos"]) for one in work if one is not None)
    assert len(counts) == 4 and sum(map(sum, counts)) == PHOTOS
    (edited, others), *fresh = counts
    assert edited == 1 and others > 0 and all(reused == 0 for _, reused in fresh)


@pytest.mark.slow
def test_without_a_detector_nothing_is_measured_and_all_photos_are_decided_on(
    benched: tuple[Path, dict[str, Any]],
) -> None:
    results = benched[0] / "results" / "many"
    quality = read_rows(results / "quality.parquet", QUALITY)
    decisions = read_rows(results / "phases" / "decisions.parquet", DECISIONS)
    assert len(quality) == len(decisions) == PHOTOS
    assert {row["status"] for row in quality} == {"not_looked_for"}
    assert {row["rule"] for row in decisions} == {"caption"}


def test_a_sweeps_scores_become_a_choice_in_little_time(tmp_path: Path) -> None:
    command = [sys.executable, str(HOUSE / "benchmarks" / "bench_scores.py"), "--rows", "100000"]
    subprocess.run([*command, "--json", str(tmp_path / "figures.json")], check=True, capture_output=True)
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["rows"] >= 100_000 and figures["choice_cpu_s"] < 0.5


@pytest.mark.long
def test_a_training_costs_little_more_than_its_bare_steps(finished: Path, tmp_path: Path) -> None:
    """On batches of two, where the trainer's own part of a step is largest: 1.17 was measured, 1.05 on batches of six."""
    shutil.copytree(finished, tmp_path / "project", symlinks=True)
    command = [sys.executable, str(HOUSE / "benchmarks" / "bench_reruns.py"), "--steps", "250"]
    command += ["--training-of", str(tmp_path / "project"), "--json", str(tmp_path / "figures.json")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert 1 < figures["training_over_bare_cpu"] <= 1.4
