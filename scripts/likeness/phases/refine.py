"""Settle which candidates a phase trains on, once the training before it has shown how well it learned each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from likeness.config.phases import LOSS_COLUMN, RefineStage
from likeness.phases.decide import first_places, top_drop, where_drop
from likeness.phases.losses import TrainLoss, train_losses
from likeness.phases.query import Answer, SampleQuery
from likeness.phases.rules import Drop

VERSION = 1
STAGE = "refine"
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Refined:
    """Rows of the manifest, in order, and one row a candidate for the table of what became of it."""

    manifest: list[dict[str, Any]]
    rows: list[dict[str, Any]]


def refine_phase(
    candidates: Sequence[Row], previous: Sequence[Row], log: Sequence[Row], stage: RefineStage, phase: str
) -> Refined:
    """Apply what a phase asks of the losses, then its `top`, to its candidates in their order.

    previous: the manifest of the phase before; a nested phase keeps none of the others, and only these have losses.
    log: the LOG rows of the training of that phase, none for a phase that reads no losses. Candidates kept by hand stay,
    and their places count. Raises UserError for SQL that cannot be asked.
    """
    trained = {row["sample_id"] for row in previous}
    losses = train_losses(log, trained)
    ids = [row["sample_id"] for row in candidates]
    percentiles = [{LOSS_COLUMN: losses[one].percentile if one in losses else None} for one in ids]
    query = SampleQuery(percentiles, pa.schema([(LOSS_COLUMN, pa.float64())]))
    answers = dict(zip(ids, query.answers(stage.where, f"phases.{phase}.where"), strict=True))
    places = range(len(ids))
    if stage.order_by:
        places = query.ordered(stage.order_by, f"phases.{phase}.order_by", ties="_row")
    drops = {one: loss_drop(answer, losses.get(one)) for one, answer in answers.items() if not answer.holds}
    if stage.nested:
        drops |= {
            one: Drop("earlier_phase", "the phase before does not train on it") for one in ids if one not in trained
        }
    forced = {row["sample_id"] for row in candidates if row["always"]}
    left = [ids[place] for place in places if ids[place] in forced or ids[place] not in drops]
    first = first_places(left, forced, stage.top)
    if stage.top is not None:
        drops |= {one: top_drop(place, stage.top) for place, one in enumerate(left, start=1) if one not in first}
    by_id = {row["sample_id"]: row for row in candidates}
    manifest = [{key: value for key, value in by_id[one].items() if key != "always"} for one in left if one in first]
    return Refined(manifest, [fate(one, losses.get(one), drops.get(one), one in forced) for one in by_id])


def loss_drop(answer: Answer, loss: TrainLoss | None) -> Drop:
    """Name the first part of the condition that a sample does not meet; without a loss it can meet none that compares one."""
    if loss is not None:
        return where_drop(answer)
    return Drop("where", f"{answer.failed} is not met: the training before did not see it, so it has no loss")


def fate(sample_id: str, loss: TrainLoss | None, drop: Drop | None, forced: bool) -> dict[str, Any]:
    """One row of the table of candidates: the loss, and why it is in or out."""
    row: dict[str, Any] = {"sample_id": sample_id, "kept": drop is None or forced, "rule": "kept", "reason": ""}
    row |= {"train_loss": loss and loss.ratio, LOSS_COLUMN: loss and loss.percentile}
    if drop is not None and forced:
        row |= {"rule": "always", "reason": f"kept by hand (always) against {drop.rule}: {drop.reason}"}
    elif drop is not None:
        row |= {"rule": drop.rule, "reason": drop.reason}
    return row
