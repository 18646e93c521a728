"""What the exported datasets have in common: one folder a role with the same file names, captions beside what is learned.

Photos with different repeats go to different folders, as repeats belong to a dataset in most trainers.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from likeness.config.exports import ExportStage
from likeness.config.subject import MINIATURE
from likeness.config.training import TrainingSettings
from likeness.errors import UserError
from likeness.exports.files import ExportFolder, place_images, place_mask
from likeness.exports.samples import PHOTO, TARGET, Sample, roles_of
from likeness.exports.settings import Trainer
from likeness.klein.family import KLEIN_4B, Layout, known_layout
from likeness.models import is_hub_id

TOKEN_PX = 16
PIPELINE_REFERENCE_PX = 1024
HUB_IDS = {
    "klein-4b": "black-forest-labs/FLUX.2-klein-base-4B",
    "klein-9b": "black-forest-labs/FLUX.2-klein-base-9B",
}
OUTPUT, NAME = "output", "likeness"
"""Folder of the trainer's checkpoints, and their name where it wants one."""


@dataclass(frozen=True)
class Group:
    """Samples that share their repeats; `places` maps a sample's name and a role (or `mask`) to the file's path."""

    repeats: int
    suffix: str
    samples: Sequence[Sample]
    places: Mapping[str, Mapping[str, str]]

    def folder(self, role: str) -> str:
        """The folder that holds one role of the group."""
        return next(iter(self.places.values()))[role].rpartition("/")[0]


MaskPlace = Callable[[str, str, str, str], str]
"""Where a mask goes, from its kind, the role that is learned, the group's suffix and the sample's name."""


def mask_folder(kind: str, learned: str, suffix: str, name: str) -> str:
    """A folder of masks with the names of their images."""
    return f"data/mask-{kind}{suffix}/{name}.png"


@dataclass(frozen=True)
class Dataset:
    """All samples of an export as they lie in its folder."""

    groups: Sequence[Group]
    learned: str
    references: Sequence[str]
    masked: bool

    def rows(self) -> Iterator[tuple[Sample, Mapping[str, str], int]]:
        """Every sample with its places and repeats."""
        for group in self.groups:
            for sample in group.samples:
                yield sample, group.places[sample.name], group.repeats

    @property
    def samples_an_epoch(self) -> int:
        """How many samples one pass over the data holds, repeats counted."""
        return sum(repeats for _, _, repeats in self.rows())


def write_dataset(
    folder: ExportFolder,
    samples: Sequence[Sample],
    stage: ExportStage,
    trainer: Trainer,
    *,
    root: str = "data",
    outside: float | None = None,
    mask_place: MaskPlace = mask_folder,
    captions: bool = True,
) -> Dataset:
    """Write images, masks and captions of all samples, leaving out what the trainer cannot take.

    `outside` is the grey level (0 to 1) of the masks' outside; by default the unmasked weight. Raises UserError where
    pairs have different roles.
    """
    roles = roles_of(samples)
    learned = TARGET if TARGET in roles else PHOTO
    references = [role for role in roles if role != learned][: trainer.max_references]
    masked = stage.training.masked_loss if stage.training.masked_loss.kind and trainer.takes_masks else None
    groups = []
    for repeats in sorted({sample.repeats for sample in samples}):
        group = [sample for sample in samples if sample.repeats == repeats]
        suffix = "" if repeats == 1 else f"-x{repeats}"
        places = {}
        for sample in group:
            wanted = {f"{root}/{role}{suffix}/{sample.name}": sample.images[role] for role in [learned, *references]}
            written = place_images(folder, wanted, ".png" if masked else None)
            places[sample.name] = dict(zip([learned, *references], written.values(), strict=True))
            if captions:
                folder.write_text(f"{root}/{learned}{suffix}/{sample.name}.txt", sample.caption)
            if masked:
                mask = mask_place(str(masked.kind), learned, suffix, sample.name)
                level = masked.unmasked_weight if outside is None else outside
                place_mask(folder, sample, mask, level, masked.inverted)
                places[sample.name]["mask"] = mask
        groups.append(Group(repeats, suffix, group, places))
    return Dataset(groups, learned, references, masked is not None)


def base_of(stage: ExportStage, trainer: Trainer) -> tuple[Layout, list[str]]:
    """The layout of the base model, or that of klein-4b with a warning where the trainer could not know it."""
    layout = known_layout(stage.base_model.source)
    if layout is not None:
        return layout, missing_model(stage)
    return KLEIN_4B, [
        f"base_model {stage.base_model.source}: {trainer.title} knows klein-4b and klein-9b only; the config says klein-4b, "
        "so set the keys of the model in overrides before training"
    ]


def model_place(stage: ExportStage, folder: ExportFolder) -> str:
    """The base model as the trainer finds it, which works in the export's folder: a hub id, or the way from there.

    Only a way between two folders of a project is the same on every machine; a source that is an absolute path stays one.
    A folder that does not lie there yet is named alike, since nothing renders the export again when it comes.
    """
    source = stage.base_model.source
    if is_hub_id(source) or source == MINIATURE or source.startswith("/"):
        return source
    local = Path(source).expanduser()
    # The trainer goes upwards from where the folder really lies; links on the way to the model stay what they are.
    return str(local) if local.is_absolute() else os.path.relpath(local.absolute(), folder.root.resolve())


def local_model(stage: ExportStage) -> Path | None:
    """The base model's folder on this machine; None for a hub id."""
    local = Path(stage.base_model.source).expanduser()
    return local if local.exists() else None


def missing_model(stage: ExportStage) -> list[str]:
    """A warning where the base model's source is a path, not a hub id, and nothing lies there."""
    source = stage.base_model.source
    if is_hub_id(source) or source == MINIATURE or Path(source).expanduser().exists():
        return []
    return [f"base_model {source}: there is no such folder here; it must lie there before the training"]


def single_files(
    stage: ExportStage, trainer: Trainer, layout: Layout, keys: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """Paths of the single files that some trainers read instead of a diffusers folder, by their key in the overrides.

    `keys` maps an override's key to the file's name, `{size}` being 4b or 9b and `{text}` 4b or 8b.
    """
    size = layout.name.removeprefix("klein-")
    names = {key: name.format(size=size, text="8b" if size == "9b" else "4b") for key, name in keys.items()}
    lacking = [key for key in names if key not in stage.overrides]
    warnings = []
    if lacking:
        warnings.append(
            f"model files: {trainer.title} reads single files, not {stage.base_model.source}; put "
            f"{', '.join(names[key] for key in lacking)} into models/ or set {', '.join(lacking)} in overrides"
        )
    return {key: f"models/{name}" for key, name in names.items()}, warnings


def constant_shift(training: TrainingSettings) -> float:
    """The shift as a number: linear in the number of image tokens, as the model's scheduler has it."""
    if training.sigma.distribution != "shifted":
        return 1.0
    tokens = (training.buckets.resolution_px / TOKEN_PX) ** 2
    linear = math.exp(0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256))
    return round(linear, 6) if training.sigma.shift == "linear" else training.sigma.shift


def checkpoints_of(training: TrainingSettings) -> int:
    """How many checkpoints a training leaves, with one to spare, so that none is deleted."""
    return math.ceil(training.fixed_steps / training.save_every) + 1


def prompts_of(stage: ExportStage) -> dict[str, str]:
    """The subject's prompts by number, with trigger and class in their places."""
    texts = [text.replace("{trigger}", stage.trigger).replace("{class}", stage.class_word) for text in stage.prompts]
    return {f"prompt-{number:02d}": text for number, text in enumerate(texts, start=1)}


def overlay(config: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Lay overrides over a config; a dot in a key leads into a section, which is made where it is absent."""
    merged = dict(config)
    for key, value in overrides.items():
        section, dot, rest = key.partition(".")
        inner = merged.get(section)
        if dot and isinstance(inner, (dict, type(None))):
            merged[section] = overlay(inner or {}, {rest: value})
        elif dot:
            raise UserError(f"export overrides: {key!r} leads through {section!r}, which is no section of the config.")
        else:
            merged[key] = value
    return merged


def check_complete(folder: ExportFolder, dataset: Dataset) -> None:
    """Check that every sample has its images and its mask; trainers themselves merely log a missing file.

    Raises UserError.
    """
    for sample, places, _ in dataset.rows():
        wanted = [dataset.learned, *dataset.references, *(["mask"] if dataset.masked else [])]
        if list(places) != wanted or not set(places.values()) <= set(folder.written):
            raise UserError(f"{folder.root}: {sample.name} is not complete. Run again.")
