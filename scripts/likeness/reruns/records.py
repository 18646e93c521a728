"""What Snakemake noted of each output when it was made: inputs, their hashes, settings; and how long jobs took.

The notes are `.snakemake/metadata/<url-safe base64 of the path>`, one JSON file an output; a long name continues in a
folder whose name begins with `@`.
"""

from __future__ import annotations

import ast
import base64
import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from likeness.program import argument_text

METADATA = Path(".snakemake/metadata")
BENCHMARKS = Path("results/.benchmarks")
LOGS = "results/.logs/"


@dataclass(frozen=True)
class Record:
    """How one output was made: `name` of the job as its log is named, inputs with their hashes, settings, and when."""

    output: str
    name: str
    inputs: tuple[str, ...]
    checksums: dict[str, str]
    settings: dict[str, Any] | None
    ended_s: float


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


def seconds_of(name: str, folder: Path = BENCHMARKS) -> float | None:
    """How long a job took when it last ran, or None where no benchmark file of it is left."""
    try:
        with (folder / f"{name}.tsv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        return float(rows[-1]["s"])
    except (OSError, LookupError, ValueError):
        return None
