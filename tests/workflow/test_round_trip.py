"""Curate on one machine, train on another, come back: nothing is done twice."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from tests.workflow.project import Project, copy_house
from tests.workflow.table import (
    STEPS_FILE,
    Scene,
    curation,
    darken,
    encoding,
    training,
)

from likeness.store import sha256_of_file

pytestmark = pytest.mark.slow


def copied(source: Path, target: Path, *, with_records: bool) -> None:
    """Bring `target` to the state of `source` as `rsync -a` does, modification times kept; `.snakemake` only if asked."""
    for path in sorted(source.rglob("*")):
        place = path.relative_to(source)
        if place.parts[0] == ".snakemake" and not with_records:
            continue
        if path.is_dir():
            (target / place).mkdir(parents=True, exist_ok=True)
        elif not (target / place).exists() or changed(path, target / place):
            shutil.copy2(path, target / place)


def changed(path: Path, copy: Path) -> bool:
    """Whether size or modification time differ, which is all that rsync looks at."""
    mine, its = path.stat(), copy.stat()
    return (mine.st_size, mine.st_mtime_ns) != (its.st_size, its.st_mtime_ns)


@pytest.mark.parametrize("with_records", [True, False], ids=["with .snakemake", "without .snakemake"])
def test_curated_here_trained_there_and_back(
    with_records: bool, project: Project, finished: Path, tmp_path: Path
) -> None:
    laptop, server = project, Project(tmp_path / "elsewhere" / "server", house=copy_house(tmp_path / "house"))
    scene = Scene(laptop, finished)
    darken("kept")(scene)
    assert laptop.succeed("--", "curate").jobs == scene.named(curation("robin", "kept")) - {"write_report"}

    copied(laptop.folder, server.folder, with_records=with_records)
    trained = server.succeed("--", STEPS_FILE)
    assert trained.jobs == {*encoding("robin", "main"), *training("robin", "main")}
    assert trained.computed["training-steps"] == 4
    assert server.succeed("--", "curate").jobs == set()

    copied(server.folder, laptop.folder, with_records=with_records)
    assert laptop.succeed("--", STEPS_FILE).jobs == set()
    assert laptop.succeed("--", "curate").jobs == set()
    steps = server.folder / STEPS_FILE
    assert sha256_of_file(laptop.folder / STEPS_FILE) == sha256_of_file(steps)


def test_a_finished_project_without_its_records_starts_nothing(project: Project) -> None:
    shutil.rmtree(project.folder / ".snakemake")
    assert project.succeed().jobs == set()


def test_a_copy_that_lost_its_modification_times_starts_nothing(project: Project) -> None:
    """With the records of Snakemake, contents decide."""
    for path in sorted(project.folder.rglob("*"), reverse=True):
        if ".snakemake" not in path.parts:
            os.utime(path)
    assert project.succeed().jobs == set()
