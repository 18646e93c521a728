"""Which checkpoints missed which floor of the choice, told again from the scores by the choice's own rule."""

from __future__ import annotations

from dataclasses import dataclass

from likeness.config.evaluation import ChoiceSettings, ChoiceStage
from likeness.evaluation.choice import rank
from likeness.report.gather import Subject
from likeness.report.numbers import short_labels

FLOORS = tuple(name for name in ChoiceSettings.model_fields if name.startswith(("min_", "max_")))


@dataclass(frozen=True)
class Missed:
    """One floor, the checkpoints that miss it in the order of their rank, and whether that is every one that was ranked."""

    floor: str
    checkpoints: tuple[str, ...]
    by_all: bool


def missed_floors(subject: Subject) -> list[Missed]:
    """The floors that some checkpoint misses; each is held alone, since the choice tells only what all of them leave."""
    choice = subject.resolved.choice
    labels = short_labels(subject.scores.candidates)
    found = []
    for name in FLOORS:
        if getattr(choice, name) is None:
            continue
        alone = choice.model_copy(update={other: None for other in FLOORS if other != name})
        stage = ChoiceStage(choice=alone, finalists=1, recipe=subject.recipe)
        ranking = rank(subject.scores, stage)
        by_all = name in ranking.waived
        missed = [one for one in ranking.ranked if by_all or one not in ranking.allowed]
        if missed:
            found.append(Missed(name, tuple(labels[one] for one in missed), by_all))
    return found
