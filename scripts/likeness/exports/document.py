"""Render the exporters' declarations for people: what each trainer takes, ignores, does otherwise, or cannot do."""

from __future__ import annotations

from collections.abc import Iterator

from likeness.exports.export import EXPORTERS, exporter_of
from likeness.exports.settings import DEFAULTS, UNKNOWN, Setting, Trainer

NAMES = tuple(EXPORTERS)


def render_exports() -> str:
    """Markdown: one table of all settings and trainers, then each trainer's own list."""
    trainers = {name: exporter_of(name).TRAINER for name in NAMES}
    parts = ["## Settings by trainer\n", LEGEND, overview(trainers)]
    parts += [section(name, trainer) for name, trainer in trainers.items()]
    return "\n".join(parts)


LEGEND = (
    "✓ is taken, ≈ is taken otherwise for some values, · stands in the dataset's files, – is not taken: a warning says so "
    "whenever it would make a difference.\n"
)


def overview(trainers: dict[str, Trainer]) -> str:
    """One row a setting, one column a trainer."""
    lines = [f"| setting | {' | '.join(trainers)} |", "|---|" + "---|" * len(trainers)]
    for name in DEFAULTS:
        marks = [mark_of(trainer.setting(name)) for trainer in trainers.values()]
        lines.append(f"| `{name}` | {' | '.join(marks)} |")
    references = [str(trainer.max_references) if trainer.max_references else "–" for trainer in trainers.values()]
    lines.append(f"| references a pair | {' | '.join(references)} |")
    runs = ["✓" if trainer.output else "–" for trainer in trainers.values()]
    lines.append(f"| runs as `trainer:` of a variant | {' | '.join(runs)} |")
    return "\n".join(lines) + "\n"


def mark_of(setting: Setting) -> str:
    if setting.missing:
        return "–"
    return "≈" if setting.notes else "·" if setting.files else "✓"


def section(name: str, trainer: Trainer) -> str:
    """A trainer's keys and what it does otherwise."""
    taken = [f"`{setting}` → {place}" for setting, place in places(trainer)]
    otherwise = [f"- `{setting}`: {text}" for setting, text in differences(trainer)]
    otherwise += [f"- references: {text}" for text in trainer.references]
    title = f"### {name}\n\n{', '.join(taken)}.\n"
    return f"{title}\nWhat it does otherwise, or cannot do:\n\n" + "\n".join(otherwise) + "\n"


def places(trainer: Trainer) -> Iterator[tuple[str, str]]:
    for name in DEFAULTS:
        setting = trainer.setting(name)
        if setting.keys:
            yield name, ", ".join(f"`{key}`" for key in setting.keys)
        elif setting.files:
            yield name, setting.files


def differences(trainer: Trainer) -> Iterator[tuple[str, str]]:
    for name in DEFAULTS:
        setting = trainer.setting(name)
        if setting.missing:
            same = "" if setting.implied is UNKNOWN else f" (as with `{setting.implied}` here)"
            yield name, f"{setting.missing}{same}"
        for note in setting.notes:
            yield name, note.text
