"""What Snakemake noted of each output when it was made: inputs, their hashes, settings; and how long jobs took.

The notes are `.snakemake/metadata/<url-safe base64 of the path>`, one JSON file an output; a long name continues in a
folder whose name begins with `@`.
"""

from __future__ import annotations

import ast
import base64
import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from likeness.program import argument_text
from likeness.workflow_inputs import UserFiles

METADATA = Path(".snakemake/metadata")
BENCHMARKS = Path("results/.benchmarks")
LOGS = "results/.logs/"
ITEMS = re.compile(r"(\d+) computed, (\d+) reused")
LONGEST_NAME = 254
"""Signs of a file's name; the rest of a longer one goes into folders."""


@dataclass(frozen=True)
class Record:
    """How one output was made: `name` of the job as its log is named, inputs with their hashes, settings, and when."""

    output: str
    name: str
    inputs: tuple[str, ...]
    checksums: dict[str, str]
    settings: dict[str, Any] | None
    ended_s: float

    @property
    def files(self) -> set[str]:
        """All files that the job read: its inputs, and those that were there but could be none."""
        return UserFiles(list(self.inputs), (self.settings or {}).get("files", {})).there


def read_records(folder: Path = METADATA) -> list[Record]:
    """All records of the working directory, of finished outputs only."""
    return [record for path in sorted(folder.rglob("*")) if path.is_file() for record in read_record(folder, path)]


def read_record(folder: Path, path: Path) -> Iterator[Record]:
    """One record; nothing where the file is torn or of another format."""
    name = "".join(part.removeprefix("@") for part in path.relative_to(folder).parts)
    try:
        output = base64.urlsafe_b64decode(name).decode()
        noted = json.loads(path.read_bytes())
        logs = noted["log"] or []
        yield Record(
            output=output,
            name=logs[0].removeprefix(LOGS).removesuffix(".log") if logs else "",
            inputs=tuple(noted["input"] or ()),
            checksums=dict(noted["input_checksums"] or {}),
            settings=settings_of(noted["params"] or []),
            ended_s=float(noted["endtime"] or 0),
        )
    except (ValueError, KeyError, OSError, SyntaxError):
        return


def record_path(output: str, folder: Path = METADATA) -> Path:
    """Where the record of one output lies."""
    name = base64.urlsafe_b64encode(output.encode()).decode()
    parts = [name[start : start + LONGEST_NAME] for start in range(0, len(name), LONGEST_NAME)]
    return Path(folder, *(f"@{part}" for part in parts[:-1]), parts[-1])


def settings_of(params: list[str]) -> dict[str, Any] | None:
    """The stage's settings among a record's params, which are Python literals; None where there are none to be read."""
    for literal in params:
        value = ast.literal_eval(literal)
        if isinstance(value, str) and value.startswith(("{", "@")):
            try:
                found = json.loads(argument_text(value))
            except (OSError, ValueError):
                continue
            if isinstance(found, dict) and found.get("code"):
                return found
    return None


def seconds_of(name: str, benchmarks: Path = BENCHMARKS, logs: Path = Path(LOGS)) -> float | None:
    """How long a job took when it last ran; None where no benchmark file of it is left.

    None as well where that run found all its items in the store, which says nothing about one that computes some.
    """
    try:
        with (benchmarks / f"{name}.tsv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        return None if found_everything(logs / f"{name}.log") else float(rows[-1]["s"])
    except (OSError, LookupError, ValueError):
        return None


def found_everything(log: Path) -> bool:
    """Whether the last line of a job's log says that it took some items from the store and computed none."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    counts = ITEMS.findall(lines[-1]) if lines and lines[-1].startswith("work: ") else []
    return any(int(reused) for _, reused in counts) and not any(int(computed) for computed, _ in counts)
