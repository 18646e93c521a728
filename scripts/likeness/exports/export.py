"""Render a phase's samples for another trainer: the registry of exporters, and what they share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from likeness.backends import load_backend
from likeness.config.exports import ExportStage
from likeness.errors import UserError
from likeness.exports.files import ExportFolder
from likeness.exports.samples import PHOTO, TARGET, Sample, read_samples
from likeness.exports.settings import Trainer, on_common_ground
from likeness.locks import writing
from likeness.store import Store

EXPORTERS = {
    "simpletuner": "likeness.exports.simpletuner:SimpleTuner",
    "ai-toolkit": "likeness.exports.ai_toolkit:AiToolkit",
    "diffusion-pipe": "likeness.exports.diffusion_pipe:DiffusionPipe",
    "musubi-tuner": "likeness.exports.musubi_tuner:MusubiTuner",
    "diffsynth-studio": "likeness.exports.diffsynth_studio:DiffSynthStudio",
    "onetrainer": "likeness.exports.onetrainer:OneTrainer",
    "diffusers": "likeness.exports.diffusers_examples:DiffusersExamples",
    "fal": "likeness.exports.fal:Fal",
}


class Exporter(Protocol):
    """Writes one trainer's dataset and config; `TRAINER` says what becomes of each of our training settings."""

    TRAINER: Trainer

    def export(self, stage: ExportStage, samples: Sequence[Sample], folder: ExportFolder) -> list[str]:
        """Write everything into the folder and return warnings that only the samples tell, one line each."""
        ...


def exporter_of(trainer: str) -> Exporter:
    """The exporter of a trainer; UserError with the nearest name for an unknown one."""
    return load_backend("exports", trainer, EXPORTERS)()


def export_dataset(stage: ExportStage, manifest: Path, images: Path, store: Store, folder: Path) -> list[str]:
    """Render one phase for `stage.trainer` into `folder` and return the warnings, which export_warnings.txt repeats.

    Raises UserError for an unknown trainer, an empty phase, images that changed, and an export that is not complete.
    """
    return export_samples(stage, read_samples(manifest, images), manifest, store, folder)


def export_samples(
    stage: ExportStage, samples: Sequence[Sample], manifest: Path, store: Store, folder: Path
) -> list[str]:
    """Render samples that were read from `manifest`."""
    exporter = exporter_of(stage.trainer)
    if not samples:
        raise UserError(f"{manifest}: the phase is empty, so there is nothing to export. Loosen its limits.")
    training, given_way = on_common_ground(stage.training, len(samples))
    stage = stage.model_copy(update={"training": training})
    target = ExportFolder(folder, store)
    num_references = max(sum(role not in (PHOTO, TARGET) for role in sample.images) for sample in samples)
    warnings = given_way + exporter.TRAINER.warnings(training, num_references)
    with writing(folder):
        warnings += exporter.export(stage, samples, target)
        target.finish(warnings)
    return warnings
