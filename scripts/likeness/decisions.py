"""What became of every sample in every phase: the decision, and what the losses of a training made of its candidates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from likeness.tables import CANDIDATE, DECISIONS, REFINED, read_rows

Row = dict[str, Any]


def read_refined(folder: Path, phase: str) -> dict[str, Row]:
    """REFINED rows of a phase by sample id; `folder` is a subject's results/<subject>/phases."""
    return {row["sample_id"]: row for row in read_rows(folder / "refined" / f"{phase}.parquet", REFINED)}


def settled_decisions(folder: Path) -> list[Row]:
    """DECISIONS rows with the losses' word on every candidate; to be read after all trainings."""
    rows = read_rows(folder / "decisions.parquet", DECISIONS)
    phases = {row["phase"] for row in rows if row["rule"] == CANDIDATE}
    refined = {phase: read_refined(folder, phase) for phase in sorted(phases)}
    return [settled(row, refined[row["phase"]]) if row["rule"] == CANDIDATE else row for row in rows]


def settled(row: Row, refined: Mapping[str, Row]) -> Row:
    """A candidate's row with its fate: kept or dropped, by which rule and why."""
    found = refined[row["sample_id"]]
    changed = {"position": row["position"] if found["kept"] else None}
    return row | {name: found[name] for name in ("kept", "rule", "reason")} | changed
