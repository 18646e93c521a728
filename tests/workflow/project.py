"""A small project in a folder of its own, run by the real Snakemake as a user would; says exactly what each run did.

A job is named by its rule and wildcards, as its log file is: `detect_faces/robin/0`. A log that was written during a
run is a job that started in it, and its last line tells the job's work.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from likeness.store import Work

HOUSE = Path(__file__).resolve().parents[2]
HOUSE_PARTS = ("Snakefile", "config", "envs", "profiles", "rules", "scripts")
STARTED = re.compile(r"^Job (\d+): .+$", re.MULTILINE)
WORK = re.compile(r"^work: (?P<items>.+); models loaded (?P<models>\d+)$", re.MULTILINE)
ITEMS = re.compile(r"^(?P<stage>\S+) (?P<computed>\d+) computed, (?P<reused>\d+) reused$")


def read_work(log: str) -> Work | None:
    """The work that a job's log tells of; None where it ended before."""
    found = list(WORK.finditer(log))
    if not found:
        return None
    parts = [] if found[-1]["items"] == "no items" else found[-1]["items"].split("; ")
    items = [match for part in parts if (match := ITEMS.match(part))]
    assert len(items) == len(parts), log
    computed = {item["stage"]: int(item["computed"]) for item in items}
    reused = {item["stage"]: int(item["reused"]) for item in items}
    return Work(computed, reused, int(found[-1]["models"]))


@dataclass(frozen=True)
class Run:
    """One call of Snakemake: its exit code, the work of each job that started by the job's name, what it printed."""

    code: int
    work: dict[str, Work | None]
    text: str
    elapsed_s: float

    @property
    def jobs(self) -> set[str]:
        """Names of the jobs that started."""
        return set(self.work)

    @property
    def computed(self) -> dict[str, int]:
        """Items computed by stage, of the stages that computed any."""
        return self._sum("computed")

    @property
    def reused(self) -> dict[str, int]:
        """Items found in the store by stage."""
        return self._sum("reused")

    def _sum(self, what: str) -> dict[str, int]:
        counts: Counter[str] = Counter()
        for work in self.work.values():
            counts.update(getattr(work or Work(), what))
        return {stage: count for stage, count in sorted(counts.items()) if count}

    @property
    def models(self) -> dict[str, int]:
        """Models loaded by rule, of the rules that loaded any."""
        counts: Counter[str] = Counter()
        for job, work in self.work.items():
            counts[job.partition("/")[0]] += work.models_loaded if work else 0
        return {rule: count for rule, count in sorted(counts.items()) if count}


class Project:
    """A project folder with its configuration, photos and results; `house` is the code that it is run with."""

    def __init__(self, folder: Path, miniature: Path | None = None, house: Path = HOUSE) -> None:
        self.folder, self.house = folder, house
        (folder / "config" / "subjects").mkdir(parents=True, exist_ok=True)
        if miniature is not None:
            shutil.copytree(miniature, folder / "models" / "miniature", copy_function=os.link)

    def configure(self, text: str, subject: str | None = None) -> None:
        """Write config.yaml, or one subject's file."""
        self.config_file(subject).write_text(text, encoding="utf-8")

    def reconfigure(self, old: str, new: str, subject: str | None = None) -> None:
        """Replace a piece of config.yaml, or of one subject's file, that stands there once."""
        text = self.config_file(subject).read_text(encoding="utf-8")
        assert text.count(old) == 1, (old, text)
        self.configure(text.replace(old, new), subject)

    def config_file(self, subject: str | None) -> Path:
        return self.folder / "config" / (f"subjects/{subject}.yaml" if subject else "config.yaml")

    def run(self, *arguments: str, cores: int = 2, timeout_s: float = 900) -> Run:
        """Run Snakemake in the folder."""
        snakefile = str(self.house / "Snakefile")
        command = [sys.executable, "-m", "snakemake", "--snakefile", snakefile, "--cores", str(cores), *arguments]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        before, started_s = self._logs(), time.monotonic()
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=environment | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        written = [name for name, when_ns in self._logs().items() if before.get(name) != when_ns]
        work = {name: read_work(self.log(name)) for name in written}
        return Run(done.returncode, work, done.stdout, time.monotonic() - started_s)

    def succeed(self, *arguments: str) -> Run:
        """Run and expect success of every job; the whole output is shown otherwise."""
        run = self.run(*arguments)
        assert run.code == 0, run.text
        assert len(set(STARTED.findall(run.text))) == len(run.jobs), (run.jobs, run.text)
        silent = [job for job, work in run.work.items() if work is None]
        assert not silent, f"jobs without a line of work: {silent}"
        return run

    def log(self, job: str) -> str:
        """The log of one job."""
        return (self._log_folder / f"{job}.log").read_text(encoding="utf-8")

    @property
    def _log_folder(self) -> Path:
        return self.folder / "results" / ".logs"

    def _logs(self) -> dict[str, int]:
        """When each job's log was written last."""
        paths = self._log_folder.rglob("*.log")
        return {path.relative_to(self._log_folder).as_posix()[:-4]: path.stat().st_mtime_ns for path in paths}


def copy_house(folder: Path) -> Path:
    """A copy of the code for editing, with all modification times kept."""
    for name in HOUSE_PARTS:
        source = HOUSE / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, folder / name)
    return folder
