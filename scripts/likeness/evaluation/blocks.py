"""What follows from an ablation: the blocks that matter most as `targets:`, and a split into content and style blocks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from likeness.errors import UserError, nearest
from likeness.evaluation.metrics import REGISTRY
from likeness.klein.targets import targets_of_blocks

KNOCK_OUT, KNOCK_IN = "knock-out", "knock-in"
IMAGE_CHANGE = "image_change"
"""Mean absolute difference of pixels, 0..1, to the reference's image; measured whatever models are configured."""
CLEAR = 0.05
"""A corrected p up to which a difference counts as clear of chance."""
Row = Mapping[str, Any]


class Split(NamedTuple):
    """Blocks by what they do, in the order of the model; `rest` does neither."""

    content: list[str]
    style: list[str]
    rest: list[str]


def strongest(rows: Iterable[Row], metric: str, mode: str) -> list[Row]:
    """One mode's rows of a metric at the weight that tests most: the lowest of a knock-out, the highest of a knock-in.

    Best rank first; blocks that the LoRA does not adapt are left out. Raises UserError for a metric without rows.
    """
    listed = list(rows)
    found = [row for row in listed if row["mode"] == mode and row["metric"] == metric]
    if not found:
        known = sorted({row["metric"] for row in listed})
        raise UserError(f"the ablation has no {mode} of {metric!r}. {nearest(metric, known)}")
    weight = (min if mode == KNOCK_OUT else max)(row["weight"] for row in found)
    return sorted((row for row in found if row["weight"] == weight and row["modules"]), key=lambda row: row["rank"])


def choose_blocks(rows: Sequence[Row], metric: str, most: int) -> list[str]:
    """The blocks that matter most to a metric: by the sum of their ranks over the modes, at most so many.

    A block is only taken where some mode's interval, corrected for the number of blocks, leaves 0 out.
    """
    total: dict[str, int] = {}
    clear: set[str] = set()
    for mode in sorted({row["mode"] for row in rows}):
        for place, row in enumerate(strongest(rows, metric, mode)):
            total[row["block"]] = total.get(row["block"], 0) + place
            if row["p_holm"] is not None and row["p_holm"] <= CLEAR:
                clear.add(row["block"])
    return sorted(clear, key=lambda block: (total[block], block))[:most]


def chosen_targets(rows: Sequence[Row], metric: str, most: int) -> str:
    """The same as the `targets:` of a next training. Raises UserError where no block stands out."""
    chosen = choose_blocks(rows, metric, most)
    if not chosen:
        raise UserError(
            f"no block's effect on {metric} is clear of chance after the correction for the number of blocks. "
            "Draw more prompts, or decide by the ranks."
        )
    return targets_of_blocks(chosen)


def split_roles(rows: Sequence[Row], content_metric: str, style_metric: str) -> Split:
    """Split adapted blocks as B-LoRA does, by which of two metrics loses the larger part when a block is knocked out.

    A block's part is its loss over all blocks' losses of that metric; a block that loses neither goes to `rest`.
    """
    content, style = (_parts(strongest(rows, metric, KNOCK_OUT)) for metric in (content_metric, style_metric))
    blocks = sorted(content.keys() | style.keys(), key=_place)
    split = Split([], [], [])
    for block in blocks:
        ours, theirs = content.get(block, 0.0), style.get(block, 0.0)
        (split.rest if ours == theirs == 0 else split.content if ours >= theirs else split.style).append(block)
    return split


def effect_of(metric: str, mode: str, value: float, reference: float) -> float:
    """How much a block matters: what a knock-out loses, or what a knock-in gains, in the metric's good direction."""
    if metric == IMAGE_CHANGE:
        return value
    gain = goodness(metric, value) - goodness(metric, reference)
    return -gain if mode == KNOCK_OUT else gain


def goodness(metric: str, value: float) -> float:
    """A metric's value turned so that more is better."""
    return {"higher": value, "lower": -value, "near 0": -abs(value), "near 1": -abs(value - 1)}[
        REGISTRY[metric].direction
    ]


def _parts(rows: Sequence[Row]) -> dict[str, float]:
    losses = {
        row["block"]: max(0.0, effect_of(row["metric"], row["mode"], row["value"], row["reference"])) for row in rows
    }
    total = sum(losses.values())
    return {block: loss / total if total else 0.0 for block, loss in losses.items()}


def _place(block: str) -> tuple[str, int]:
    kind, _, index = block.partition(".")
    return (kind, int(index or 0))
