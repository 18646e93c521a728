"""Tables of scores: metrics down, the base, the chosen checkpoint and the runners-up across."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from likeness.evaluation.metrics import REGISTRY
from likeness.evaluation.prompts import REPORT, SELECT
from likeness.evaluation.scores import BASE_CHECKPOINT, Checkpoint, Scores
from likeness.report.curves import chosen_scale
from likeness.report.gather import Subject
from likeness.report.numbers import Measured, estimated, short_labels


@dataclass(frozen=True)
class Column:
    """One checkpoint at one strength."""

    checkpoint: Checkpoint
    scale: float
    is_chosen: bool
    label: str

    @property
    def is_base(self) -> bool:
        return self.checkpoint == BASE_CHECKPOINT


@dataclass(frozen=True)
class ScoreTable:
    """Rows of (metric, one number a column or None)."""

    columns: list[Column]
    rows: list[tuple[str, list[Measured | None]]]


def report_columns(subject: Subject) -> list[Column]:
    """The base, the chosen checkpoint at its strength and at 1, then the runners-up, as drawn on the report half."""
    drawn = {(one, scale) for one, split, scale, _ in subject.scores.groups if split == REPORT}
    chosen = subject.chosen
    places = [(BASE_CHECKPOINT, 1.0)]
    if chosen is not None:
        places += [(chosen, scale) for scale in dict.fromkeys((chosen_scale(subject), 1.0))]
    ranked = runners_up(subject)
    further = sorted(one for one, _ in drawn if one not in (BASE_CHECKPOINT, chosen, *ranked))
    places += [(one, 1.0) for one in dict.fromkeys([*ranked, *further])]
    return columns_of([place for place in places if place in drawn], chosen)


def runners_up(subject: Subject) -> list[Checkpoint]:
    """The other finalists in order of rank."""
    others = (subject.best or {}).get("runners_up") or []
    return [Checkpoint(other["variant"], other["phase"], other["step"]) for other in others]


def columns_of(places: Sequence[tuple[Checkpoint, float]], chosen: Checkpoint | None) -> list[Column]:
    """Columns with labels that say what tells the checkpoints apart."""
    labels = short_labels([checkpoint for checkpoint, _ in places])
    return [Column(one, scale, one == chosen, labels[one]) for one, scale in places]


def report_table(subject: Subject) -> ScoreTable | None:
    """Every measured metric on the report half; None where only the base was drawn there."""
    columns = report_columns(subject)
    if not any(not column.is_base for column in columns):
        return None
    return table(subject, subject.scores, REPORT, columns)


def distilled_table(subject: Subject) -> ScoreTable | None:
    """The finalists on the distilled model, select half; None where none is configured."""
    scores = subject.distilled
    if scores is None:
        return None
    order = [BASE_CHECKPOINT, *([subject.chosen] if subject.chosen else []), *runners_up(subject), *scores.candidates]
    places = [(one, 1.0) for one in dict.fromkeys(order) if one in scores.sha256s]
    return table(subject, scores, SELECT, columns_of(places, subject.chosen))


def table(subject: Subject, scores: Scores, split: str, columns: Sequence[Column]) -> ScoreTable:
    """Means of every metric that any column has."""
    order = list(REGISTRY)
    metrics = sorted(scores.metrics(split), key=lambda name: (order.index(name) if name in order else 99, name))
    rows = []
    for metric in metrics:
        cells = [estimated(subject.name, scores, column.checkpoint, split, metric, column.scale) for column in columns]
        if any(cells):
            rows.append((metric, cells))
    return ScoreTable(list(columns), rows)
