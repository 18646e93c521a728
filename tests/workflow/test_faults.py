"""Crashes, full and closed disks, two runs at once: one clear word, and the same command goes on to the same bytes."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.workflow.faults import (
    commands,
    difference,
    processes,
    read_only,
    remove,
    small_disk,
    snapshot,
    wait_for,
)
from tests.workflow.project import HOUSE, Project, read_work

from likeness.store import sha256_of_file
from likeness.tables import read_table
from likeness.training.train import STEPS

pytestmark = pytest.mark.slow

TRAINING = "results/robin/train/main/main/steps.json"


def untrain(project: Project) -> None:
    """Put a project back to before its training: no checkpoint, no saved state, no table of it."""
    store = project.folder / "results" / ".store"
    for path in (project.folder / "results/robin/train/main/main").glob("*.safetensors"):
        (store / "blobs" / sha256_of_file(path)[:2] / sha256_of_file(path)).unlink()
    remove(project.folder, ".store/trainings", "robin/train")


def start(project: Project, *arguments: str) -> subprocess.Popen[bytes]:
    """Start Snakemake in a project and return at once."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(HOUSE / "Snakefile"), "--cores", "2", *arguments]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    with (project.folder / "started.txt").open("wb") as said:
        return subprocess.Popen(
            command, cwd=project.folder, env=environment | {"OMP_NUM_THREADS": "1"}, stdout=said, stderr=said
        )


def saved_step(project: Project) -> int:
    """The last step whose state a training saved."""
    records = (project.folder / "results/.store/trainings").glob("*/record-*.json")
    return max((int(path.stem.removeprefix("record-")) for path in records), default=0)


def training_process(project: Project, at_step: int) -> int:
    """Wait until the training has saved a step, and return its process, stopped.

    It is let run in short slices, so that it cannot run ahead of a test that gets little of a busy machine.
    """
    training = wait_for(lambda: next(processes(project.folder, "train_lora"), None), "a training that starts")
    os.kill(training, signal.SIGSTOP)

    def saved() -> int | None:
        if saved_step(project) >= at_step:
            return training
        os.kill(training, signal.SIGCONT)
        time.sleep(0.05)
        os.kill(training, signal.SIGSTOP)
        return None

    return wait_for(saved, f"a training that saves step {at_step}")


def computed_steps(project: Project) -> int:
    work = read_work(project.log("train_lora/robin/main/main"))
    assert work is not None
    return work.computed[STEPS]


def unlock(project: Project) -> subprocess.CompletedProcess[str]:
    """The first command of `make unlock`; the second is Snakemake's own --unlock."""
    steps = subprocess.run(
        ["make", "--no-print-directory", "-n", "unlock"], cwd=HOUSE, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert [line.split('bin/python" ')[-1] for line in steps][-2:] == [
        "scripts/unlock_results.py --folder '.'",
        "-m snakemake --directory '.' --snakefile /dev/null --unlock",
    ]
    return subprocess.run(
        [sys.executable, str(HOUSE / "scripts/unlock_results.py")],
        cwd=project.folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_training_killed_under_snakemake_is_tried_again_and_goes_on(project: Project) -> None:
    before = snapshot(project.folder)
    untrain(project)
    run = start(project, TRAINING)
    os.kill(training_process(project, at_step=2), signal.SIGKILL)
    saved = saved_step(project)
    said = project.folder / "started.txt"
    assert run.wait() == 0, said.read_text()
    assert said.read_text().count("Trying to restart job") == 1
    assert computed_steps(project) == 4 - saved
    assert difference(before, snapshot(project.folder)) == []


def test_snakemake_killed_leaves_an_orphan_that_is_named_and_refuses_others(project: Project) -> None:
    before = snapshot(project.folder)
    untrain(project)
    run = start(project, TRAINING)
    orphan = training_process(project, at_step=2)

    second = project.run(TRAINING)
    assert second.code != 0 and "LockException" in second.text
    unlocked = project.run("--nolock", TRAINING)
    assert unlocked.code != 0 and "Traceback" not in unlocked.text
    refusal = f"error: results/robin/train/main/main is being written by process {orphan} on "
    errors = {line for line in unlocked.text.splitlines() if line.startswith("error: ")}
    assert len(errors) == 1 and errors.pop().startswith(refusal)

    alive = unlock(project)
    assert alive.returncode == 1 and f"still running: snakemake (process {run.pid})" in alive.stdout
    run.kill()
    run.wait()
    alive = unlock(project)
    assert alive.returncode == 1 and f"still running: train_lora.py (process {orphan})" in alive.stdout
    assert "snakemake" not in alive.stdout and f"kill {orphan}" in alive.stdout
    saved = saved_step(project)
    os.kill(orphan, signal.SIGKILL)
    wait_for(lambda: None if list(processes(project.folder, "train_lora")) else True, "the orphan's end")
    assert unlock(project).returncode == 0
    assert project.run("--unlock").code == 0

    project.succeed(TRAINING)
    assert computed_steps(project) == 4 - saved
    assert difference(before, snapshot(project.folder)) == []


def test_runs_of_different_subjects_finish_side_by_side(pair: Project) -> None:
    before = snapshot(pair.folder)
    remove(pair.folder, "robin/lora/published.json", "wren/lora/published.json")
    first = start(pair, "robin")
    publishing = wait_for(lambda: next(processes(pair.folder, "publish_lora"), None), "robin's publishing")
    os.kill(publishing, signal.SIGSTOP)
    assert pair.succeed("wren").jobs == {"publish_lora/wren"}
    assert first.poll() is None
    os.kill(publishing, signal.SIGCONT)
    assert first.wait() == 0, (pair.folder / "started.txt").read_text()
    assert difference(before, snapshot(pair.folder)) == []


def unbuilt(finished: Path, folder: Path) -> Project:
    """A project that has not run yet, with the finished one's configuration, photos and models."""
    for name in ("config", "data", "models"):
        shutil.copytree(finished / name, folder / name, copy_function=os.link if name == "models" else shutil.copy2)
    return Project(folder)


def check_tables(project: Project, finished: dict[str, str]) -> int:
    """Every table there is can be read and says what the finished project's says; returns how many there are."""
    found = {name: sha256 for name, sha256 in snapshot(project.folder).items() if name.endswith(".parquet")}
    for name, sha256 in found.items():
        assert read_table(project.folder / "results" / name).num_columns and finished[name] == sha256
    return len(found)


def test_a_full_disk_is_one_clear_error_and_the_next_run_completes(finished: Path, tmp_path: Path) -> None:
    project, whole = unbuilt(finished, tmp_path / "project"), snapshot(finished)
    target = "results/robin/masks.parquet"
    with small_disk(project.folder / "results", size_kb=140):
        run = project.run(target)
        assert run.code != 0 and "Traceback" not in run.text
        errors = set(re.findall(r"^error: .*$", run.text, re.MULTILINE))
        assert any(error.startswith("error: cannot write results/ (0.0 MB free): No space left") for error in errors)
        assert all("No space left on device" in error for error in errors)
        assert check_tables(project, whole) >= 2
        again = project.run(target)
        assert again.code != 0 and again.jobs == set() and "No space left on device" in again.text
        subprocess.run(["mount", "-o", "remount,size=64m", str(project.folder / "results")], check=True)
        project.succeed(target)
        found = snapshot(project.folder)
        assert difference({name: whole[name] for name in found}, found) == []
        assert check_tables(project, whole) == 8


def test_a_file_that_the_disk_refuses_is_one_clear_error(finished: Path, tmp_path: Path) -> None:
    """Needs no root: the system refuses to let a process write files over a size."""
    project = unbuilt(finished, tmp_path / "project")
    results = project.folder / "results"
    shutil.copytree(finished / "results/robin/shards/photos", results / "robin/shards/photos")
    command = commands(finished)["detect_faces/robin/0"]

    def run(limit_bytes: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, command.script, *command.arguments],
            cwd=project.folder,
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes)),
        )

    refused = run(5_000)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1, refused.stderr
    assert re.match(r"error: cannot write \S+: File too large. Free the disk", refused.stderr)
    assert list(results.rglob(".*.tmp")) == []
    assert run(resource.RLIM_INFINITY).returncode == 0
    assert sha256_of_file(project.folder / command.outputs[0]) == sha256_of_file(finished / command.outputs[0])


def test_closed_results_are_one_clear_error_before_any_job(project: Project) -> None:
    """Where the file to be written is there, Snakemake says it; where it is not, we do."""
    before = snapshot(project.folder)
    tables = ("robin/photos.parquet", "robin/shards/photos/0.parquet", "robin/shards/photos/1.parquet")
    says = {
        (): r"^Write-protected output files",
        tables: r"^error: cannot write results/ .*: (Read-only file system|Permission denied)\. Free the disk or mend",
    }
    for missing, sentence in says.items():
        remove(project.folder, *missing)
        closed = snapshot(project.folder)
        with read_only(project.folder / "results"):
            run = project.run("--forcerun", "index_photos", "--", "results/robin/photos.parquet")
            assert run.code != 0 and run.jobs == set() and "Traceback" not in run.text
            assert len(re.findall(sentence, run.text, re.MULTILINE)) == 1, run.text
            assert snapshot(project.folder) == closed
    project.succeed("results/robin/photos.parquet")
    assert difference(before, snapshot(project.folder)) == []
