"""What becomes of each of our training settings in another trainer: a key of its own, something in the files, or a warning.

Every exporter declares a table over all settings, so that none is lost in silence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from likeness.config.training import TrainingSettings

UNKNOWN = object()
"""What the trainer does instead cannot be known: always worth a warning."""


@dataclass(frozen=True)
class Setting:
    """Where one setting goes: `keys` of the trainer, a place in the `files`, or nowhere for the reason `missing`.

    `implied` is the value that the trainer uses anyway; with that value there is nothing to warn of.
    """

    keys: tuple[str, ...] = ()
    files: str = ""
    missing: str = ""
    implied: Any = UNKNOWN


def key(*names: str) -> Setting:
    return Setting(keys=names)


def in_files(where: str) -> Setting:
    return Setting(files=where)


def missing(reason: str, implied: Any = UNKNOWN) -> Setting:
    return Setting(missing=reason, implied=implied)


def leaves(settings: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All settings by dotted name, nested sections resolved."""
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def missing_settings(training: TrainingSettings, table: Mapping[str, Setting]) -> list[str]:
    """Warn of every setting that the trainer has no place for and that asks for other than it does anyway."""
    values = dict(leaves(training))
    assert set(values) == set(table), f"settings without a declared place: {sorted(set(values) ^ set(table))}"
    return [
        f"training.{name} = {value}: {table[name].missing}"
        for name, value in values.items()
        if table[name].missing and (table[name].implied is UNKNOWN or value != table[name].implied)
    ]


def unused_settings(training: TrainingSettings, table: Mapping[str, Setting], has_references: bool) -> list[str]:
    """Warn of settings that have a place and differ from the default, but that the others leave without effect."""
    values, defaults = dict(leaves(training)), dict(leaves(TrainingSettings.model_validate({})))
    without_effect = {
        "masked_loss.unmasked_weight": training.masked_loss.kind is None and "no effect while masked_loss.kind is null",
        "sigma.shift": training.sigma.distribution != "shifted" and "only read when sigma.distribution is shifted",
        "sigma.scale": training.sigma.distribution == "uniform" and "not read when sigma.distribution is uniform",
        "buckets.reference_resolution_px": not has_references and "there are no references in this dataset",
    }
    return [
        f"training.{name} = {values[name]}: {reason}"
        for name, reason in without_effect.items()
        if reason and not table[name].missing and values[name] != defaults[name]
    ]
