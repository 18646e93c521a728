"""What the report says of pairs of LoRAs, and of what the base's blocks take from a prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup

from likeness.report.gather import Row, Subject
from likeness.report.heatmap import Cell, draw_grid, in_order
from likeness.report.numbers import Measured, Number, measured_from, rounded

MOST_MODULES = 5
METHODS = {"sum": "both in full", "k-lora": "K-LoRA", "masked": "each within its mask"}


class Lost(NamedTuple):
    """One metric of one subject: with its own LoRA alone, with both, and the paired difference."""

    subject: str
    metric: str
    alone: Number
    together: Number
    difference: Measured
    is_clear: bool


class Shared(NamedTuple):
    """One module: overlaps of what both read and write, what chance would give, and the cosine of the changes."""

    module: str
    inputs: Number
    outputs: Number
    by_chance: Number
    cosine: Number


@dataclass(frozen=True)
class Pair:
    """One pair of LoRAs; `modules` are those whose changes are most alike or most opposed."""

    name: str
    own: str
    other: str
    method: str
    lost: tuple[Lost, ...]
    count: Number
    inputs: Number
    outputs: Number
    modules: tuple[Shared, ...]


@dataclass(frozen=True)
class Probed:
    """One probe: its grid, and the blocks that take more of the content and more of the style."""

    name: str
    grid: Markup
    content: tuple[str, ...]
    style: tuple[str, ...]


def pairs(subject: Subject) -> list[Pair]:
    """Every pair of LoRAs that was measured, by name."""
    return [_pair(subject.name, name, losses, overlaps) for name, (losses, overlaps) in subject.crosstalks.items()]


def _pair(subject: str, name: str, losses: Sequence[Row], overlaps: Sequence[Row]) -> Pair:
    first = next((row for row in losses if row["subject"] == subject), {"own": "", "other": "", "method": "sum"})
    inputs, outputs = (mean_overlap(overlaps, side) for side in ("inputs", "outputs"))
    place = (("source", "overlaps"), ("subject", subject), ("crosstalk", name))
    strongest = sorted(overlaps, key=lambda row: (-abs(row["cosine"]), row["module"]))[:MOST_MODULES]
    return Pair(
        name=name,
        own=first["own"],
        other=first["other"],
        method=METHODS[first["method"]],
        lost=tuple(_lost(subject, name, row) for row in sorted(losses, key=lambda row: row["subject"] != subject)),
        count=Number(len(overlaps), (*place, ("key", "modules")), 0),
        inputs=Number(inputs, (*place, ("key", "inputs"))),
        outputs=Number(outputs, (*place, ("key", "outputs"))),
        modules=tuple(_shared(place, row) for row in strongest),
    )


def mean_overlap(overlaps: Sequence[Row], side: str) -> float:
    """Overlap of inputs or outputs over all modules, weighted by energy; 0 where no module is shared."""
    total = math.fsum(row["energy"] for row in overlaps)
    return math.fsum(row[side] * row["energy"] for row in overlaps) / total if total else 0.0


def _lost(subject: str, name: str, row: Row) -> Lost:
    place = (("source", "crosstalk"), ("subject", subject), ("crosstalk", name))
    about = (*place, ("of", row["subject"]), ("metric", row["metric"]))
    alone, together = (Number(row[key], (*about, ("part", key))) for key in ("alone", "together"))
    found = {"value": row["difference"], "low": row["low"], "high": row["high"]}
    is_clear = row["low"] is not None and not row["low"] <= 0 <= row["high"]
    return Lost(row["subject"], row["metric"], alone, together, measured_from(found, about), is_clear)


def _shared(place: tuple[tuple[str, str], ...], row: Row) -> Shared:
    def number(key: str, value: float) -> Number:
        return Number(value, (*place, ("module", row["module"]), ("key", key)))

    chance = max(("inputs_by_chance", "outputs_by_chance"), key=lambda key: row[key])
    return Shared(
        row["module"],
        number("inputs", row["inputs"]),
        number("outputs", row["outputs"]),
        number(chance, row[chance]),
        number("cosine", row["cosine"]),
    )


def probed(subject: Subject) -> list[Probed]:
    """Every probe by name, its colours relative to the largest number of each swap."""
    found = []
    for name, rows in subject.probes.items():
        blocks, cells = in_order(row["block"] for row in rows), []
        for swap in ("content", "style"):
            own = [row for row in rows if row["swap"] == swap]
            largest = max((abs(shift_of(row)) for row in own), default=0.0) or 1.0
            cells += [_cell(subject.name, name, row, shift_of(row) / largest) for row in own]
        roles = {row["block"]: row["role"] for row in rows}
        by_role = [tuple(block for block in blocks if roles[block] == role) for role in ("content", "style")]
        found.append(Probed(name, draw_grid(f"prompt swap {name}", blocks, ["content", "style"], cells), *by_role))
    return found


def shift_of(row: Row) -> float:
    """How far a block takes the picture: by CLIP where it could be measured, else by pixels."""
    return row["change"] if row["clip"] is None else row["clip"]


def _cell(subject: str, name: str, row: Row, strength: float) -> Cell:
    about = {"source": "probe", "subject": subject, "probe": name, "swap": row["swap"], "block": row["block"]}
    title = f"{row['block']} {row['swap']}: {rounded(shift_of(row))}"
    return Cell(row["block"], row["swap"], strength, row["role"] == row["swap"], title, about)
