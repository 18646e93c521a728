"""What the report says of phases that training losses settled: which candidates they dropped, by name."""

from __future__ import annotations

from dataclasses import dataclass

from likeness.report.gather import Row, Subject
from likeness.report.numbers import Number, count

DIGITS = {"train_loss": 2, "train_loss_percentile": 1}


@dataclass(frozen=True)
class Lost:
    """One candidate that a phase does not train on; numbers are None where the training before did not see it."""

    name: str
    loss: Number | None
    percentile: Number | None
    reason: str


@dataclass(frozen=True)
class Settled:
    """One phase: the variant and the phase whose training gave the losses, and what they left of the candidates."""

    phase: str
    variant: str
    before: str
    candidates: Number
    kept: Number
    lost: tuple[Lost, ...]


def settled_phases(subject: Subject) -> list[Settled]:
    """Every phase that reads losses, in order."""
    names = list(subject.settings["phases"])
    return [settled_phase(subject, phase, names[names.index(phase) - 1]) for phase in subject.refined]


def settled_phase(subject: Subject, phase: str, before: str) -> Settled:
    """What became of the candidates of one phase."""
    rows = subject.refined[phase]

    lost = [
        Lost(
            row["id"],
            number(subject.name, phase, row, "train_loss"),
            number(subject.name, phase, row, "train_loss_percentile"),
            row["reason"],
        )
        for row in rows
        if not row["kept"]
    ]
    return Settled(
        phase=phase,
        variant=subject.settings["phases"][phase]["losses_of"],
        before=before,
        candidates=count(subject.name, "refined", f"{phase}:candidates", len(rows)),
        kept=count(subject.name, "refined", f"{phase}:kept", len(rows) - len(lost)),
        lost=tuple(lost),
    )


def number(subject: str, phase: str, row: Row, key: str) -> Number | None:
    """One measure of one candidate, with where it stands."""
    if row[key] is None:
        return None
    about = (("source", "refined"), ("subject", subject), ("phase", phase), ("id", row["id"]), ("key", key))
    return Number(row[key], about, DIGITS[key])
