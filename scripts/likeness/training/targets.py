"""The blocks that matter most by an ablation's table, as the targets of a next training.

Tables are read as tables: nothing of evaluation is imported, and evaluation ranks by the same functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from likeness.config.surgery import OTHER
from likeness.config.training import TrainingSettings
from likeness.errors import UserError, nearest
from likeness.klein.targets import PRESETS, targets_of_blocks
from likeness.tables import read_rows
from likeness.tables_surgery import ABLATION

KNOCK_OUT, KNOCK_IN = "knock-out", "knock-in"
CLEAR = 0.05
"""A corrected p up to which a difference counts as clear of chance."""
Row = Mapping[str, Any]


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

    A block is only taken where it helps in some mode, by an interval that leaves 0 out when corrected for the number of
    blocks. What lies outside of the blocks has no `targets:` of its own and takes no place.
    """
    total: dict[str, int] = {}
    clear: set[str] = set()
    for mode in sorted({row["mode"] for row in rows}):
        for place, row in enumerate(strongest(rows, metric, mode)):
            total[row["block"]] = total.get(row["block"], 0) + place
            is_clear = row["p_holm"] is not None and row["p_holm"] <= CLEAR
            if is_clear and row["effect"] > 0 and row["block"] != OTHER:
                clear.add(row["block"])
    return sorted(clear, key=lambda block: (total[block], block))[:most]


def chosen_targets(rows: Sequence[Row], metric: str, most: int, preset: str = "all_blocks") -> str:
    """The same as the `targets:` of a next training. Raises UserError where no block stands out."""
    chosen = choose_blocks(rows, metric, most)
    if not chosen:
        raise UserError(
            f"no block's effect on {metric} is clear of chance after the correction for the number of blocks. "
            "Draw more prompts, or decide by the ranks."
        )
    return targets_of_blocks(chosen, preset)


def with_targets(settings: TrainingSettings, table: Path | None) -> TrainingSettings:
    """The settings with `targets_from` read off its table, so that a training is named by the targets themselves."""
    wish = settings.targets_from
    if wish is None:
        return settings
    assert table is not None
    if settings.targets not in PRESETS:
        raise UserError(
            f"training.targets: {settings.targets!r} must be a preset where targets_from chooses its blocks. "
            f"{nearest(settings.targets, PRESETS)}"
        )
    rows = read_rows(table, ABLATION)
    try:
        targets = chosen_targets(rows, wish.metric, wish.most, settings.targets)
    except UserError as error:
        raise UserError(f"training.targets_from: {table}: {error}") from error
    print(f"targets: {targets}, from {table}", flush=True)
    return settings.model_copy(update={"targets": targets, "targets_from": None})
