"""Who trains which variant, and the slices of settings with which other trainers get their data.

Nothing heavy is imported here: the plan reads it while Snakemake parses the rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from likeness.config.exports import ExportStage, ExternalStage
from likeness.config.subject import Subject
from likeness.config.training import TrainingSettings


def variant_pattern(subjects: Mapping[str, Subject]) -> dict[str, str]:
    """Patterns of the wildcard `variant` by who trains it.

    Variants of one name may be trained here for one subject and elsewhere for another, so a name counts only behind its
    own subject's path.
    """
    names = [
        rf"(?<=results/{name}/train/){variant}"
        for name, subject in subjects.items()
        for variant in subject.trained_variants
        if subject.variants[variant].trainer
    ]
    external = "|".join(names) or "(?!)"
    return {"external": external, "native": rf"(?!({external})/)[a-z0-9-]+"}


def export_slice(subject: Subject, trainer: str, phase: str) -> ExportStage:
    """What an export of a phase depends on; settings come from the first trained variant."""
    first = next(iter(subject.trained_variants), None)
    training = subject.training_of(first, phase) if first else subject.training
    prompts = tuple(prompt.text for prompt in subject.prompts.values())
    return stage_of(subject, trainer, training, prompts=prompts, overrides=subject.export[trainer].overrides)


def external_slice(subject: Subject, variant: str, phase: str, offline: bool) -> ExternalStage:
    """What a training by another trainer depends on: no prompts, so that an edited prompt trains nothing."""
    trainer = subject.variants[variant].trainer
    assert trainer is not None
    command = subject.trainers[trainer]
    training = subject.training_of(variant, phase)
    export = stage_of(subject, trainer, training, overrides=command.overrides)
    return ExternalStage(export=export, command=command, base_model=subject.base_model, offline=offline)


def stage_of(subject: Subject, trainer: str, training: TrainingSettings, **more: Any) -> ExportStage:
    return ExportStage(
        trainer=trainer,
        training=training,
        kind=subject.kind,
        recipe=subject.recipe,
        trigger=subject.trigger,
        class_word=subject.class_word,
        base_model=subject.base_model,
        **more,
    )
