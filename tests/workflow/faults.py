"""Stage programs of a finished project, run again as Snakemake ran them, and killed at chosen moments."""

from __future__ import annotations

import base64
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import pytest
from tests.workflow.project import HOUSE

from likeness.store import sha256_of_file

T = TypeVar("T")
NOT_RESULTS = (".logs", ".benchmarks", ".store/fingerprints.json")
"""How runs went: logs and times, which differ between equal runs, and the cache of model hashes, which holds file times."""
CURVES = "tensorboard"
"""Folders of curves over time."""


def snapshot(folder: Path) -> dict[str, str]:
    """The sha256 of every file of a project's results, the store and hidden files included, by relative path."""
    results = folder / "results"
    return {
        path.relative_to(results).as_posix(): sha256_of_file(path)
        for path in sorted(results.rglob("*"))
        if path.is_file()
        and not path.relative_to(results).as_posix().startswith(NOT_RESULTS)
        and path.parent.name != CURVES
    }


def difference(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """Files that only one side has, or that differ; short enough for an assertion's message."""
    return sorted(path for path in {*ours, *theirs} if ours.get(path) != theirs.get(path))


@dataclass(frozen=True)
class Command:
    """The program and flags of one job, the log that its output goes to, and the files that it declares."""

    script: str
    arguments: tuple[str, ...]
    log: str
    outputs: tuple[str, ...]

    def with_flags(self, **values: str) -> Command:
        """The same job with the values of some flags replaced."""
        words = list(self.arguments)
        for flag, value in values.items():
            words[words.index(f"--{flag}") + 1] = value
        return replace(self, arguments=tuple(words))


def commands(folder: Path) -> dict[str, Command]:
    """The command of every job of a finished project by the job's name, as Snakemake recorded them."""
    metadata = folder / ".snakemake" / "metadata"
    found: dict[str, Command] = {}
    for path in sorted(metadata.rglob("*")):
        if path.is_file():
            output = base64.b64decode("".join(path.relative_to(metadata).parts)).decode()
            record = json.loads(path.read_text())
            log = record["log"][0]
            name = log.removeprefix("results/.logs/").removesuffix(".log")
            before = found[name].outputs if name in found else ()
            found[name] = command_of(record["shellcmd"], log, (*before, output))
    return found


def command_of(shell: str, log: str, outputs: tuple[str, ...]) -> Command:
    """Read `python "$LIKENESS/<script>" flags… > log 2>&1`."""
    words = shlex.split(shell)
    end = next(place for place, word in enumerate(words) if word in (">", "2>&1", "|"))
    script = words[1].replace("$LIKENESS", str(HOUSE / "scripts"))
    return Command(script, tuple(words[2:end]), log, outputs)


@dataclass(frozen=True)
class Ended:
    """How a stage program ended: its exit code (negative: by a signal) and how often it changed the disk."""

    code: int
    changes: int


class StageServer:
    """Runs stage programs in forked children of a process that has the heavy libraries loaded."""

    def __init__(self) -> None:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("stage_server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | threads,
        )
        assert self._process.stdout is not None and self._process.stdout.readline() == "ready\n"

    def run(self, command: Command, folder: Path, kill_at: int = 0) -> Ended:
        """Run a job in a project's folder; SIGKILL at its `kill_at`-th change of the disk, counted from 1."""
        request = {
            "script": command.script,
            "arguments": command.arguments,
            "cwd": str(folder),
            "log": str(folder / command.log),
            "kill_at": kill_at,
        }
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Ended(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)


def remove(folder: Path, *names: str) -> None:
    """Remove files or folders of a project's results."""
    for name in names:
        path = folder / "results" / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def processes(folder: Path, script: str) -> Iterator[int]:
    """Ids of living Python processes that run a stage program in a project's folder."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            state = (process / "stat").read_text().rpartition(")")[2].split()[0]
            here = (process / "cwd").resolve() == folder.resolve()
        except OSError:
            continue
        if here and state != "Z" and len(words) > 1 and words[1].endswith(f"/{script}.py"):
            yield int(process.name)


def wait_for(condition: Callable[[], T | None], what: str, timeout_s: float = 600) -> T:
    """Wait until a condition gives something, and return that."""
    end_s = time.monotonic() + timeout_s
    while time.monotonic() < end_s:
        found = condition()
        if found is not None:
            return found
        time.sleep(0.005)
    raise AssertionError(f"waited {timeout_s:g} s for {what}")


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[None]:
    """Mount something at a folder while the block runs; skips the test, saying why, where that is not allowed."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this test needs to mount a disk, which only root may do here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def small_disk(folder: Path, size_kb: int) -> Iterator[None]:
    """A disk of its own for a folder, in memory."""
    with mounted(folder, "-t", "tmpfs", "-o", f"size={size_kb}k", "tmpfs"):
        yield


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Close a folder for writing: by its permissions for a user, by a mount for root, whom permissions do not bind."""
    if os.geteuid() == 0:
        with mounted(folder, "--bind", str(folder)):
            subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
            yield
        return
    before = {path: path.stat().st_mode for path in (folder, *folder.rglob("*")) if path.is_dir()}
    for path in before:
        path.chmod(0o555)
    try:
        yield
    finally:
        for path, mode in before.items():
            path.chmod(mode)
