"""Render a phase for fal's hosted trainer: one flat folder to zip and upload, and the request that goes with it.

Pairs are `ROOT_start`, `ROOT_start2` …, `ROOT_end` with `ROOT.txt`, photos `ROOT` with `ROOT.txt`. The service takes a
number of steps and a learning rate, and nothing else of our settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from likeness.config.exports import ExportStage
from likeness.errors import UserError
from likeness.exports.files import ExportFolder, place_images
from likeness.exports.samples import PHOTO, SOURCE, TARGET, Sample
from likeness.exports.settings import DEFAULTS, NATIVE, Trainer, key, missing
from likeness.klein.family import known_layout

OWN_CHOICE = "fal's trainer has no such setting and makes its own choice"
PLACES = {
    PHOTO: "",
    SOURCE: "_start",
    TARGET: "_end",
    "reference": "_start2",
    "reference2": "_start3",
    "reference3": "_start4",
}
KEYS = {"steps": "steps", "learning_rate": "learning_rate"}


FAL = Trainer(
    title="fal's trainer",
    max_references=4,
    settings={name: key(KEYS[name]) if name in KEYS else missing(OWN_CHOICE) for name in DEFAULTS if name not in NATIVE}
    | {
        "masked_loss.kind": missing("fal's trainer takes no masks; it learns the whole picture", implied=None),
        "masked_loss.unmasked_weight": missing("fal's trainer takes no masks", implied=0.1),
        "masked_loss.inverted": missing("fal's trainer takes no masks", implied=False),
        "allow_distilled": missing("fal's trainer offers base checkpoints only", implied=False),
        "cpu_threads": missing("fal's machines are their own", implied=1),
        "precision": missing("fal's trainer has its own number type", implied="bfloat16"),
        "gradient_checkpointing": missing("fal's machines are their own", implied=False),
    },
)


class Fal:
    """Writes data/ (flat) and config/fal.json with the endpoint and its input."""

    TRAINER = FAL

    def export(self, stage: ExportStage, samples: Sequence[Sample], folder: ExportFolder) -> list[str]:
        """Write the dataset and the request; returns warnings, one line each."""
        for sample in samples:
            for repeat in range(sample.repeats):
                root = sample.name if repeat == 0 else f"{sample.name}--copy{repeat + 1}"
                write_sample(folder, sample, f"data/{root}")
        check_complete(folder, samples)
        layout = known_layout(stage.base_model.source)
        request, warnings = request_of(stage, layout.name if layout else None)
        folder.write_json("config/fal.json", request)
        return warnings


def write_sample(folder: ExportFolder, sample: Sample, root: str) -> None:
    """Write one sample's images, each with its own ending, and its caption."""
    for role, image in sample.images.items():
        place_images(folder, {f"{root}{PLACES[role]}": image})
    folder.write_text(f"{root}.txt", sample.caption)


def request_of(stage: ExportStage, model: str | None) -> tuple[dict[str, Any], list[str]]:
    """The endpoint and its input; the address of the uploaded zip is the user's to fill in."""
    warnings = []
    if model is None:
        warnings.append(
            f"base_model {stage.base_model.source}: fal trains klein-4b and klein-9b only; the request says klein-4b"
        )
    edit = "/edit" if stage.kind == "pairs" else ""
    settings: dict[str, Any] = {
        "image_data_url": "",
        "steps": stage.training.fixed_steps,
        "learning_rate": stage.training.learning_rate,
        "default_caption": stage.trigger,
    }
    return {
        "endpoint": f"fal-ai/flux-2-{model or 'klein-4b'}-base-trainer{edit}",
        "input": settings | stage.overrides,
    }, warnings


def check_complete(folder: ExportFolder, samples: Sequence[Sample]) -> None:
    """Check that every sample has one file a role and its caption; raises UserError."""
    stems = {relative.rpartition(".")[0] for relative in folder.written}
    for sample in samples:
        wanted = {f"data/{sample.name}{PLACES[role]}" for role in sample.images}
        if not wanted <= stems or f"data/{sample.name}.txt" not in folder.written:
            raise UserError(f"{folder.root}: {sample.name} is not complete. Run again.")
