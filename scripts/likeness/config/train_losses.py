"""What a phase asks of the losses of an earlier training: taken apart from what it asks of a sample's own columns, and checked.

The one decides after a training, the other before any, so no part of a condition and no term of an order may read both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from likeness.config.phases import LOSS_COLUMN, PhaseSettings
from likeness.errors import UserError, nearest

if TYPE_CHECKING:
    from likeness.config.subject import Subject


@dataclass(frozen=True)
class Parts:
    """SQL over a sample's own columns, and SQL over the losses alone; an empty `loss_order_by` leaves the order as it is."""

    where: str
    order_by: str
    loss_where: str = "true"
    loss_order_by: str = ""

    @property
    def reads_losses(self) -> bool:
        return self.loss_where != "true" or self.loss_order_by != ""


def parts_of(phase: PhaseSettings, place: str) -> Parts:
    """Take a phase's condition and order apart; `place` is its key in the config.

    Raises UserError where one of them is no SQL, or where a part reads losses and other columns.
    """
    where, order_by = phase.where, phase.order_by
    loss_where, loss_order_by = "true", ""
    if LOSS_COLUMN in where.lower():
        where, loss_where = _part_condition(where, f"{place}.where")
    if LOSS_COLUMN in order_by.lower():
        order_by, loss_order_by = _part_order(order_by, f"{place}.order_by")
    return Parts(where, order_by, loss_where, loss_order_by)


def _part_condition(condition: str, place: str) -> tuple[str, str]:
    # DuckDB takes a tenth of a second to load, which only those pay who ask for losses.
    from likeness.sql import conjuncts, read_condition, written

    parts = conjuncts(read_condition(condition, place))
    after = _reading_losses(parts, written, place, f"`sharpness > 20 AND {LOSS_COLUMN} < 90`, joined by AND")
    if not any(after):
        return condition, "true"
    sides = [[written(part) for part, late in zip(parts, after, strict=True) if late is side] for side in (False, True)]
    before, losses = (" AND ".join(side) or "true" for side in sides)
    return before, losses


def _part_order(order_by: str, place: str) -> tuple[str, str]:
    from likeness.sql import read_order, written, written_order

    terms = read_order(order_by, place)
    after = _reading_losses([term["expression"] for term in terms], written, place, f"`{LOSS_COLUMN}, sharpness DESC`")
    count = sum(after)
    if not count:
        return order_by, ""
    if not all(after[:count]):
        raise UserError(
            f"{place}: {order_by!r} orders by {LOSS_COLUMN} after other columns. The losses are known last and order "
            f"first: begin with them, as in `{LOSS_COLUMN}, sharpness DESC`."
        )
    before = written_order(terms[count:]) if terms[count:] else PhaseSettings().order_by
    return before, written_order(terms[:count])


def _reading_losses(parts: Sequence[Any], written: Callable[[Any], str], place: str, as_in: str) -> list[bool]:
    """Which parts read the losses; UserError for one that reads other columns too."""
    from likeness.sql import columns_of

    found = []
    for part in parts:
        columns = columns_of(part)
        if LOSS_COLUMN in columns and len(columns) > 1:
            others = ", ".join(sorted(columns - {LOSS_COLUMN}))
            raise UserError(
                f"{place}: `{written(part)}` reads {LOSS_COLUMN} together with {others}. The losses are known after a "
                f"training, the others before any: write them as parts of their own, as in {as_in}."
            )
        found.append(LOSS_COLUMN in columns)
    return found


def loss_mistakes(subject: Subject) -> Iterator[str]:
    """What is wrong with phases that read the losses of a training, each with its key."""
    before: str | None = None
    for name, phase in subject.phases.items():
        try:
            reads = parts_of(phase, f"phases.{name}").reads_losses
        except UserError as error:
            yield str(error)
            reads = True
        if reads and phase.losses_of is None:
            variants = ", ".join(subject.native_variants) or "none"
            yield f"phases.{name}: it reads {LOSS_COLUMN}; name the variant whose training is meant (losses_of, one of: {variants})"
        if phase.losses_of is not None:
            yield from _wrong_source(subject, name, before, phase.losses_of)
            if not reads:
                yield (
                    f"phases.{name}.losses_of: neither where nor order_by reads {LOSS_COLUMN}, so the losses would be "
                    f"unused; add a part such as `{LOSS_COLUMN} < 90`, or remove this key"
                )
        if phase.balance and name in subject.refined_phases:
            yield (
                f"phases.{name}.balance: shares of framings cannot be kept where training losses decide what is left, since "
                "they are settled before any training; balance an earlier phase, or set nested: false for a phase without losses"
            )
        before = name


def _wrong_source(subject: Subject, name: str, before: str | None, variant: str) -> Iterator[str]:
    """Why the named variant has no losses of the phase before."""
    key = f"phases.{name}.losses_of"
    found = subject.variants.get(variant)
    if before is None:
        yield f"{key}: the first phase has no training before it; remove the key and what reads {LOSS_COLUMN}"
    elif found is None:
        yield f"{key}: no variant {variant!r}; {nearest(variant, subject.native_variants)}"
    elif found.lora:
        yield f"{key}: variant {variant!r} is made of finished files, of which no losses are known"
    elif found.trainer:
        yield f"{key}: variant {variant!r} is trained by {found.trainer}, which tells no loss of a single sample"
    elif before not in subject.phases_of(variant):
        yield f"{key}: variant {variant!r} does not train {before!r}, the phase before; add it to variants.{variant}.phases"


def losses_that_wait(subject: Subject) -> Iterator[str]:
    """Losses of a training that would wait for the phase that reads them; asked of settings without other mistakes."""
    names = list(subject.phases)
    for place, (name, phase) in enumerate(subject.phases.items()):
        if phase.losses_of is None:
            continue
        earlier = [one for one in subject.phases_of(phase.losses_of) if one in names[:place]]
        sources = [subject.training_of(phase.losses_of, one).targets_from for one in earlier]
        if any(source is not None and source.ablation for source in sources):
            yield (
                f"phases.{name}.losses_of: variant {phase.losses_of!r} takes its targets from an ablation, which is measured "
                "against the samples of all phases, so it would wait for this one; name a variant without targets_from"
            )
