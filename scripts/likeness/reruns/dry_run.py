"""Ask Snakemake what it would do: its dry run, read into jobs with the reasons that it gives."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from likeness.code import SCRIPTS
from likeness.errors import UserError, nearest
from likeness.program import argument_text

JOB = re.compile(r"^Job \d+: (?P<message>.*)\nReason: (?P<reason>.*)\nShell command: (?P<command>.*)$", re.MULTILINE)
LOG = re.compile(r"results/\.logs/(\S+?)\.log\b")
FILES = {
    "missing": "Missing output files: ",
    "incomplete": "Incomplete output files: ",
    "edited": "Updated input files: ",
}
FILES |= {"renewed": "Input files updated by another job: "}
FACTS = {"listing": "Set of input files has changed since last execution"}
FACTS |= {"command": "Code has changed since last execution", "settings": "Params have changed since last execution"}
FACTS |= {"environment": "Software environment definition has changed since last execution"}
COMMA = ", "
TARGETS = ("all", "curate", "report")
BANNER_END = "Building DAG of jobs...\n"
PROFILE_NOTICE = re.compile(r"^Using .*profile .*\n?", re.MULTILINE)
USER_ERROR = re.compile(r"^ *UserError: (?P<said>.*?)(?=^(?:Wildcards|Traceback):|\Z)", re.MULTILINE | re.DOTALL)
NO_RULE = re.compile(r"^No rule to produce (?P<target>.*?) \(if you use input functions", re.MULTILINE)
NEXT_REASON = "|".join(re.escape(phrase) for phrase in (*FILES.values(), *FACTS.values()))


@dataclass(frozen=True)
class PlannedJob:
    """One job that would start: what it calls itself, why it starts, and the command that it would run."""

    message: str
    reason: str
    command: str

    @cached_property
    def name(self) -> str:
        """Rule and wildcards as the log is named, such as `detect_faces/robin/0`."""
        found = LOG.search(self.command)
        return found[1] if found else ""

    @property
    def rule(self) -> str:
        return self.name.partition("/")[0]

    @property
    def subject(self) -> str:
        """The second part of the name; for a rule over all subjects nothing."""
        return self.name.split("/")[1] if "/" in self.name else ""

    def files(self, kind: str, known: Collection[str] = ()) -> list[str]:
        """Files that the reason names: missing or incomplete outputs, inputs edited by a hand or renewed by a job.

        Snakemake puts a comma between them, which names of photos may hold as well: `known` names stay whole.
        """
        pattern = rf"(?:^|; ){re.escape(FILES[kind])}(.*?)(?=; (?:{NEXT_REASON})|$)"
        found = re.search(pattern, self.reason)
        return split_names(found[1], known) if found else []

    def has(self, fact: str) -> bool:
        return re.search(rf"(?:^|; ){re.escape(FACTS[fact])}", self.reason) is not None

    @property
    def starts_by_itself(self) -> bool:
        """Whether anything but another job's output is the reason."""
        return any(self.files(kind) for kind in ("missing", "incomplete", "edited")) or any(map(self.has, FACTS))

    @cached_property
    def settings(self) -> dict[str, Any] | None:
        """What `--settings` will say: {"settings": the stage's slice, "code": digest}."""
        words = shlex.split(self.command)
        if "--settings" not in words:
            return None
        return json.loads(argument_text(words[words.index("--settings") + 1]))


def parse_jobs(text: str) -> list[PlannedJob]:
    """Jobs in the output of `snakemake -n -p`, in its order; targets, which run nothing, are left out."""
    return [PlannedJob(**found.groupdict()) for found in JOB.finditer(text)]


def split_names(text: str, known: Collection[str] = ()) -> list[str]:
    """Names from a list with commas between them; where several ways to read it are open, the longest known name is meant."""
    parts = text.split(COMMA)
    most = 1 + max((name.count(COMMA) for name in known), default=0)
    names: list[str] = []
    place = 0
    while place < len(parts):
        ends = range(min(place + most, len(parts)), place + 1, -1)
        end = next((end for end in ends if COMMA.join(parts[place:end]) in known), place + 1)
        names.append(COMMA.join(parts[place:end]))
        place = end
    return [name for name in names if name]


def dry_run(targets: Sequence[str] = (), subjects: Iterable[str] = ()) -> list[PlannedJob]:
    """What Snakemake would start in the working directory; raises UserError with its words where it cannot say.

    `subjects` are names that a mistyped target may have meant.
    """
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(SCRIPTS.parent / "Snakefile")]
    command += ["--cores", "1", "--dry-run", "--printshellcmds", "--nocolor", "--", *targets]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(complaint(done.stdout, done.stderr, subjects))
    return parse_jobs(done.stdout + done.stderr)


def complaint(stdout: str, stderr: str, subjects: Iterable[str] = ()) -> str:
    """Why Snakemake made no plan: the user's own mistake alone where it is one, else all that it said but its banner.

    A dry run complains on the standard output, a run on the standard error.
    """
    said = stdout.rpartition(BANNER_END)[2] + PROFILE_NOTICE.sub("", stderr)
    if mistake := USER_ERROR.search(said):
        return "\n".join(line.strip() for line in mistake["said"].strip().splitlines())
    if unknown := NO_RULE.search(said):
        return f"nothing makes {unknown['target']!r}; {nearest(unknown['target'], (*subjects, *TARGETS))}, or a file"
    return f"Snakemake cannot plan the run:\n{said.strip()}"


def job_of_output(jobs: Sequence[PlannedJob], recorded: dict[str, str]) -> dict[str, PlannedJob]:
    """Which job makes a file: by Snakemake's records of earlier runs ({output: job name}), else by what it misses."""
    by_name = {job.name: job for job in jobs}
    made = {path: by_name[name] for path, name in recorded.items() if name in by_name}
    return made | {path: job for job in jobs for path in job.files("missing")}
