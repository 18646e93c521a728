"""Grids of blocks as inline SVG; heat maps of ablations: weights down, colour for how much a block matters.

Colour is the effect over the largest of the map, so that a glance finds the blocks that do the work; a ring marks
differences that are clear of chance after the correction for the number of blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from likeness.evaluation.blocks import CLEAR, KNOCK_OUT, effect_of
from likeness.report.numbers import rounded

CELL_PX, LEFT_PX, TOP_PX = 24.0, 56.0, 34.0
Row = dict[str, Any]


@dataclass(frozen=True)
class HeatMap:
    """One mode and metric of one ablation."""

    subject: str
    ablation: str
    mode: str
    metric: str
    blocks: Sequence[str]
    weights: Sequence[float]
    rows: Sequence[Row]

    @property
    def caption(self) -> str:
        what = "lost without the block" if self.mode == KNOCK_OUT else "gained by the block alone"
        return f"{self.metric.replace('_', ' ')}: {what}"


def heat_map(subject: str, ablation: str, rows: Sequence[Row], mode: str, metric: str) -> HeatMap | None:
    """The map of one mode and metric; None where the table has no such rows."""
    own = [row for row in rows if (row["mode"], row["metric"]) == (mode, metric)]
    if not own:
        return None
    blocks = in_order(row["block"] for row in own)
    weights = sorted({row["weight"] for row in own}, reverse=mode != KNOCK_OUT)
    return HeatMap(subject, ablation, mode, metric, blocks, weights, own)


def draw_heat_map(found: HeatMap) -> Markup:
    """The map as SVG; every cell carries its number's whereabouts and a title that a pointer shows."""
    effects = {
        (row["block"], row["weight"]): effect_of(found.metric, found.mode, row["value"], row["reference"])
        for row in found.rows
    }
    largest = max(map(abs, effects.values()), default=0.0) or 1.0
    cells = [_cell_of(found, row, effects[row["block"], row["weight"]] / largest) for row in found.rows]
    return draw_grid(found.caption, found.blocks, [f"× {weight:g}" for weight in found.weights], cells)


@dataclass(frozen=True)
class Cell:
    """One cell of a grid of blocks: where it lies, -1..1 as its colour, a ring, a title, and its number's whereabouts."""

    block: str
    line: str
    strength: float
    is_clear: bool
    title: str
    about: Mapping[str, str]


def draw_grid(caption: str, blocks: Sequence[str], lines: Sequence[str], cells: Sequence[Cell]) -> Markup:
    """Blocks across, lines down, as SVG."""
    width = LEFT_PX + len(blocks) * CELL_PX + 6
    height = TOP_PX + len(lines) * CELL_PX + 6
    parts = [
        Markup(
            '<svg viewBox="0 0 {:g} {:g}" role="img" aria-label="{}" class="chart heat" style="max-width:{:g}px">'
        ).format(width, height, caption, 1.6 * width)
    ]
    parts += _headings(blocks, lines)
    parts += [_drawn(cell, blocks.index(cell.block), lines.index(cell.line)) for cell in cells]
    return Markup("").join([*parts, Markup("</svg>")])


def in_order(blocks: Iterable[str]) -> list[str]:
    """Blocks once each, in the order of the model."""
    return sorted(set(blocks), key=_place)


def _headings(blocks: Sequence[str], lines: Sequence[str]) -> list[Markup]:
    parts, before = [], ""
    for place, block in enumerate(blocks):
        kind, _, index = block.partition(".")
        x = LEFT_PX + (place + 0.5) * CELL_PX
        if kind != before:
            parts.append(Markup('<text x="{:g}" y="11">{}</text>').format(x - CELL_PX / 2, kind))
        parts.append(Markup('<text x="{:g}" y="27" class="mid">{}</text>').format(x, index))
        before = kind
    for place, line in enumerate(lines):
        y = TOP_PX + (place + 0.65) * CELL_PX
        parts.append(Markup('<text x="{:g}" y="{:g}" class="end">{}</text>').format(LEFT_PX - 6, y, line))
    return parts


def _cell_of(found: HeatMap, row: Row, strength: float) -> Cell:
    interval = "" if row["low"] is None else f" ({rounded(row['low'])} to {rounded(row['high'])})"
    about = {
        "source": "ablation",
        "subject": found.subject,
        "ablation": found.ablation,
        "mode": found.mode,
        "metric": found.metric,
        "block": row["block"],
        "weight": f"{row['weight']:g}",
    }
    title = f"{row['block']} × {row['weight']:g}{interval}: {rounded(row['difference'])}"
    is_clear = row["p_holm"] is not None and row["p_holm"] <= CLEAR
    return Cell(row["block"], f"× {row['weight']:g}", strength, is_clear, title, about)


def _drawn(cell: Cell, column: int, line: int) -> Markup:
    attributes = Markup("").join(Markup(' data-{}="{}"').format(key, value) for key, value in cell.about.items())
    return Markup(
        '<rect x="{:g}" y="{:g}" width="{:g}" height="{:g}" rx="3" class="cell {}{}" style="--heat:{:.0f}%"{}>'
        "<title>{}</title></rect>"
    ).format(
        LEFT_PX + column * CELL_PX + 1,
        TOP_PX + line * CELL_PX + 1,
        CELL_PX - 2,
        CELL_PX - 2,
        "worse" if cell.strength < 0 else "better",
        " clear" if cell.is_clear else "",
        100 * min(1.0, abs(cell.strength)),
        attributes,
        cell.title,
    )


def _place(block: str) -> tuple[int, int]:
    kind, _, index = block.partition(".")
    return (("double", "single", "other").index(kind), int(index or 0))
