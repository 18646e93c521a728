"""What becomes of each of our training settings in another trainer: a key of its own, something in the files, or a warning.

Every exporter declares a `Trainer`: one `Setting` for each of ours, what it can learn from, where it leaves checkpoints.
Warnings, the table in the manual and the tests all come from these declarations. A setting that a declaration does not
name counts as one that the trainer lacks, so none is lost in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import BaseModel

from likeness.config.training import TrainingSettings

UNKNOWN = object()
"""What the trainer does instead cannot be known: always worth a warning."""

REFERENCE_PX = "buckets.reference_resolution_px"
"""The one setting that means nothing to a dataset without references."""

Condition = Callable[[TrainingSettings], bool]


@dataclass(frozen=True)
class Note:
    """A value that the trainer takes otherwise than here: which values (`when`), and what it does."""

    when: Condition
    text: str


@dataclass(frozen=True)
class Setting:
    """Where one setting goes: `keys` of the trainer, a place in the `files`, or nowhere for the reason `missing`.

    `implied` is the value that the trainer uses anyway, `unless` the settings under which it makes no difference: then
    there is nothing to warn of.
    """

    keys: tuple[str, ...] = ()
    files: str = ""
    missing: str = ""
    implied: Any = UNKNOWN
    unless: Condition | None = None
    notes: tuple[Note, ...] = ()

    def but(self, when: Condition, text: str) -> Setting:
        """The same, with a value that is taken otherwise than here."""
        return replace(self, notes=(*self.notes, Note(when, text)))

    def warnings(self, name: str, value: Any, training: TrainingSettings) -> list[str]:
        """What the trainer does otherwise with this value, each line beginning with the setting's name."""
        texts = [note.text for note in self.notes if note.when(training)]
        agrees = (self.implied is not UNKNOWN and value == self.implied) or (self.unless and self.unless(training))
        if self.missing and not agrees:
            texts.insert(0, self.missing)
        return [f"training.{name} = {value}: {text}" for text in texts]


def key(*names: str) -> Setting:
    return Setting(keys=names)


def in_files(where: str) -> Setting:
    return Setting(files=where)


def missing(reason: str, implied: Any = UNKNOWN, unless: Condition | None = None) -> Setting:
    return Setting(missing=reason, implied=implied, unless=unless)


@dataclass(frozen=True)
class Output:
    """Where a trainer leaves its LoRA files: a regular expression over paths below its folder.

    The group `step` is the step of the file; a file without one is the last. Some trainers count micro-batches.
    """

    pattern: str
    counts_micro_batches: bool = False


@dataclass(frozen=True)
class Trainer:
    """What another trainer takes from us, ignores, or cannot do."""

    title: str
    settings: Mapping[str, Setting]
    max_references: int
    references: Sequence[str] = field(default=())
    """What it does otherwise with references; said of every dataset that has some."""
    output: Output | None = None
    """None where it cannot run here."""

    def setting(self, name: str) -> Setting:
        """What becomes of a setting; one that the declaration does not name is one that the trainer lacks."""
        return self.settings.get(name) or missing(f"{self.title} has no such setting", DEFAULTS.get(name, UNKNOWN))

    @property
    def takes_masks(self) -> bool:
        return not self.setting("masked_loss.kind").missing

    @property
    def takes_alpha(self) -> bool:
        return not self.setting("alpha").missing

    def warnings(self, training: TrainingSettings, num_references: int) -> list[str]:
        """Everything of our settings and samples that the trainer does not take as it is, one line each."""
        asked = {name: value for name, value in leaves(training) if name != REFERENCE_PX or num_references}
        found = [line for name, value in asked.items() for line in self.setting(name).warnings(name, value, training)]
        found += [line for line in self._unused(training, num_references > 0) if line not in found]
        return found + self._reference_warnings(num_references)

    def _unused(self, training: TrainingSettings, has_references: bool) -> Iterator[str]:
        """Settings that have a place and differ from the default, but that the others leave without effect."""
        values = dict(leaves(training))
        for name, reason in without_effect(training, has_references).items():
            has_place = name == REFERENCE_PX or not self.setting(name).missing
            if has_place and values[name] != DEFAULTS[name]:
                yield f"training.{name} = {values[name]}: {reason}"

    def _reference_warnings(self, num_references: int) -> list[str]:
        if num_references == 0:
            return []
        lines = [f"references: {text}" for text in self.references]
        if num_references > self.max_references:
            taken = "no reference, so the targets are exported alone and the edit cannot be learned"
            if self.max_references:
                taken = f"{self.max_references} of the {num_references} references a pair has; the others are left out"
            lines.insert(0, f"references: {self.title} takes {taken}")
        return lines


def leaves(settings: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All settings by dotted name, nested sections resolved; a section that may be off is one setting."""
    for name, about in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, BaseModel) and about.default is not None:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


DEFAULTS: Mapping[str, Any] = dict(leaves(TrainingSettings.model_validate({})))


NATIVE_PREFIXES = (
    *("losses.", "ema.", "adapter.", "adapter_", "checkpoint_every", "held_out_sigmas", "noise_offset"),
    *("flip", "resolutions_px", "processes", "base_precision", "offload", "compile", "attention"),
    *("tensorboard", "samples"),
)
NATIVE = frozenset(
    name
    for name in DEFAULTS
    if name.startswith(NATIVE_PREFIXES)
    or name in ("buckets.diptych", "targets_from", "schedule.power", "schedule.end", "schedule.stage_at")
)
"""Settings of the native trainer alone: a declaration need not name them, and a changed one is warned of."""


def without_effect(training: TrainingSettings, has_references: bool) -> dict[str, str]:
    """Settings that the others leave without effect in any trainer, with the reason."""
    sigma, uniform = training.sigma, "not read when sigma.distribution is uniform"
    reasons = {
        "masked_loss.inverted": (training.masked_loss.kind is None, "no effect while masked_loss.kind is null"),
        "masked_loss.unmasked_weight": (training.masked_loss.kind is None, "no effect while masked_loss.kind is null"),
        "sigma.shift": (sigma.distribution != "shifted", "only read when sigma.distribution is shifted"),
        "sigma.scale": (sigma.distribution == "uniform", uniform),
        "sigma.bias": (sigma.distribution == "uniform", uniform),
        REFERENCE_PX: (not has_references, "there are no references in this dataset"),
    }
    return {name: reason for name, (holds, reason) in reasons.items() if holds}


COMMON_OPTIMIZERS = ("adamw", "adamw8bit", "prodigy")
COMMON_SCHEDULES = ("constant", "cosine")


def on_common_ground(training: TrainingSettings, samples: int) -> tuple[TrainingSettings, list[str]]:
    """Settings that every trainer can be told, and a warning for each that had to give way.

    `steps: auto` becomes its number; an optimizer or schedule of the native trainer's own becomes AdamW or constant.
    """
    warnings, training = [], training.resolve_steps(samples)
    if training.optimizer.name not in COMMON_OPTIMIZERS:
        name = training.optimizer.name
        warnings.append(f"training.optimizer.name = {name}: exported as adamw, which every trainer has; check the rate")
        optimizer = training.optimizer.model_copy(update={"name": "adamw"})
        training = training.model_copy(update={"optimizer": optimizer})
    if training.schedule.name not in COMMON_SCHEDULES:
        warnings.append(
            f"training.schedule.name = {training.schedule.name}: exported as constant; set the trainer's own beside it"
        )
        schedule = training.schedule.model_copy(update={"name": "constant"})
        training = training.model_copy(update={"schedule": schedule})
    return training, warnings


def is_whole_rank(training: TrainingSettings) -> bool:
    """Whether alpha equals the rank, which is all that trainers without an alpha can do."""
    return training.resolved_alpha == training.rank


def is_between_levels(training: TrainingSettings) -> bool:
    """Whether masks are used whose unmasked weight is none of the 256 levels of a picture."""
    weight = training.masked_loss.unmasked_weight
    return training.masked_loss.kind is not None and abs(round(255 * weight) / 255 - weight) > 1e-9


def common(title: str) -> dict[str, Setting]:
    """What holds of every trainer that runs on its own."""
    return {
        "allow_distilled": missing(f"{title} does not ask whether the base model is distilled", implied=False),
        "cpu_threads": missing(f"{title} takes its threads from the environment (OMP_NUM_THREADS)", implied=1),
    }
