"""Render a phase's samples for another trainer: the registry of exporters, and what they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from likeness.backends import load_backend
from likeness.config.exports import ExportStage
from likeness.errors import UserError
from likeness.exports.files import ExportFolder
from likeness.exports.samples import Sample, read_samples
from likeness.exports.settings import Setting, missing_settings, unused_settings
from likeness.store import Store

EXPORTERS = {
    "simpletuner": "likeness.exports.simpletuner:SimpleTuner",
    "fal": "likeness.exports.fal:Fal",
}


class Exporter(Protocol):
    """Writes one trainer's dataset and config; `SETTINGS` says what becomes of each of our training settings."""

    SETTINGS: Mapping[str, Setting]

    def export(self, stage: ExportStage, samples: Sequence[Sample], folder: ExportFolder) -> list[str]:
        """Write everything into the folder and return warnings of its own, one line each."""
        ...


def export_dataset(stage: ExportStage, manifest: Path, images: Path, store: Store, folder: Path) -> list[str]:
    """Render one phase for `stage.trainer` into `folder` and return the warnings, which export_warnings.txt repeats.

    Raises UserError for an unknown trainer, an empty phase, images that changed, and an export that is not complete.
    """
    exporter: Exporter = load_backend("exports", stage.trainer, EXPORTERS)()
    samples = read_samples(manifest, images)
    if not samples:
        raise UserError(f"{manifest}: the phase is empty, so there is nothing to export. Loosen its limits.")
    target = ExportFolder(folder, store)
    has_references = any(len(sample.images) > 1 for sample in samples)
    warnings = missing_settings(stage.training, exporter.SETTINGS)
    warnings += unused_settings(stage.training, exporter.SETTINGS, has_references)
    warnings += exporter.export(stage, samples, target)
    target.finish(warnings)
    return warnings
