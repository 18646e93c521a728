"""What follows from an ablation: the blocks that matter most as `targets:`, and a split into content and style blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from likeness.config.metrics import DIRECTIONS
from likeness.training.targets import CLEAR, KNOCK_IN, KNOCK_OUT, choose_blocks, chosen_targets, strongest

__all__ = [
    "CLEAR",
    "IMAGE_CHANGE",
    "KNOCK_IN",
    "KNOCK_OUT",
    "Split",
    "choose_blocks",
    "chosen_targets",
    "effect_of",
    "goodness",
    "split_roles",
    "strongest",
]

IMAGE_CHANGE = "image_change"
"""Mean absolute difference of pixels, 0..1, to the reference's image; measured whatever models are configured."""
Row = Mapping[str, Any]


class Split(NamedTuple):
    """Blocks by what they do, in the order of the model; `rest` does neither."""

    content: list[str]
    style: list[str]
    rest: list[str]


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
    return {"higher": value, "lower": -value, "near 0": -abs(value), "near 1": -abs(value - 1)}[DIRECTIONS[metric]]


def _parts(rows: Sequence[Row]) -> dict[str, float]:
    losses = {
        row["block"]: max(0.0, effect_of(row["metric"], row["mode"], row["value"], row["reference"])) for row in rows
    }
    total = sum(losses.values())
    return {block: loss / total if total else 0.0 for block, loss in losses.items()}


def _place(block: str) -> tuple[str, int]:
    kind, _, index = block.partition(".")
    return (kind, int(index or 0))
