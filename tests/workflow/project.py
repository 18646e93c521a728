"""A small project in a folder of its own, run by the real Snakemake as a user would; says exactly which jobs started."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HOUSE = Path(__file__).resolve().parents[2]
STARTED = re.compile(r"^Job \d+: (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Run:
    """One call of Snakemake: its exit code, the jobs that started (by message), and all that it printed."""

    code: int
    jobs: tuple[str, ...]
    text: str

    def without_tables(self) -> set[str]:
        """Jobs but merges, pages and the decision, which always run and cost nothing."""
        cheap = ("Merge", "Write the page", "Write the report", "Decide", "Write the resolved")
        return {job for job in self.jobs if not job.startswith(cheap)}


class Project:
    """A project folder with its configuration, photos and results."""

    def __init__(self, folder: Path, miniature: Path | None = None) -> None:
        self.folder = folder
        (folder / "config" / "subjects").mkdir(parents=True, exist_ok=True)
        if miniature is not None:
            shutil.copytree(miniature, folder / "models" / "miniature", copy_function=os.link)

    def configure(self, text: str, subject: str | None = None) -> None:
        """Write config.yaml, or one subject's file."""
        name = f"subjects/{subject}.yaml" if subject else "config.yaml"
        (self.folder / "config" / name).write_text(text, encoding="utf-8")

    def run(self, *arguments: str, cores: int = 2, timeout_s: float = 900) -> Run:
        """Run Snakemake in the folder."""
        command = [
            sys.executable,
            "-m",
            "snakemake",
            "--snakefile",
            str(HOUSE / "Snakefile"),
            "--cores",
            str(cores),
            *arguments,
        ]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
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
        return Run(done.returncode, tuple(STARTED.findall(done.stdout)), done.stdout)

    def succeed(self, *arguments: str) -> Run:
        """Run and expect success; the whole output is shown otherwise."""
        run = self.run(*arguments)
        assert run.code == 0, run.text
        return run

    def log(self, name: str) -> str:
        """The log of one job, such as `detect_faces/robin/0`."""
        return (self.folder / "results" / ".logs" / f"{name}.log").read_text(encoding="utf-8")
