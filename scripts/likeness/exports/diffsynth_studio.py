"""Render a phase for DiffSynth-Studio: a metadata list with paths by role, and the flags of its training program.

Several references need a JSON list, as a CSV cell is one path. It has neither batches nor a number of steps: it goes
through the dataset as often as it takes, and steps are micro-batches. Paths are relative to the export's folder: run
`bash config/train.sh` inside it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

from likeness.config.exports import ExportStage
from likeness.config.training import TrainingSettings
from likeness.exports.dataset import (
    OUTPUT,
    Dataset,
    base_of,
    check_complete,
    local_model,
    model_place,
    overlay,
    write_dataset,
)
from likeness.exports.files import ExportFolder
from likeness.exports.samples import Sample
from likeness.exports.script import flags, write_script
from likeness.exports.settings import Output, Trainer, common, is_whole_rank, key, missing
from likeness.exports.targets import module_endings
from likeness.klein.family import Layout

OPTIMIZERS = {"adamw": None, "adamw8bit": "bitsandbytes.optim.AdamW8bit", "prodigy": "prodigyopt.Prodigy"}
FIXED_SIGMAS = "DiffSynth-Studio draws evenly from a schedule of fixed shift and weighs the loss with a bell"

DIFFSYNTH_STUDIO = Trainer(
    title="DiffSynth-Studio",
    max_references=4,
    references=("DiffSynth-Studio brings references to about 1024² px",),
    output=Output(rf"{OUTPUT}/(step-(?P<step>\d+)|epoch-\d+)\.safetensors", counts_micro_batches=True),
    settings=common("DiffSynth-Studio")
    | {
        "rank": key("lora_rank"),
        "alpha": missing("DiffSynth-Studio trains with alpha equal to the rank", unless=is_whole_rank),
        "targets": key("lora_target_modules"),
        "init": missing("DiffSynth-Studio starts its down matrices in the kaiming way", implied="kaiming"),
        "steps": key("dataset_repeat"),
        "batch_size": missing("DiffSynth-Studio trains one sample at a time; accumulate gradients instead", implied=1),
        "gradient_accumulation": key("gradient_accumulation_steps"),
        "learning_rate": key("learning_rate"),
        "optimizer.name": key("customized_optimizer"),
        "optimizer.weight_decay": key("weight_decay"),
        "optimizer.beta1": missing("DiffSynth-Studio leaves the optimizer's own value", implied=0.9),
        "optimizer.beta2": missing("DiffSynth-Studio leaves the optimizer's own value", implied=0.999),
        "optimizer.eps": missing("DiffSynth-Studio leaves the optimizer's own value", implied=1e-8),
        "schedule.name": missing("DiffSynth-Studio keeps the learning rate constant", implied="constant"),
        "schedule.warmup_steps": missing("DiffSynth-Studio has no warm-up of its own length", implied=0),
        "sigma.distribution": missing(FIXED_SIGMAS),
        "sigma.scale": missing(FIXED_SIGMAS, implied=1.0),
        "sigma.bias": missing(FIXED_SIGMAS, implied=0.0),
        "sigma.shift": missing(FIXED_SIGMAS, implied="linear"),
        "masked_loss.kind": missing("DiffSynth-Studio takes no masks; it learns the whole picture", implied=None),
        "masked_loss.unmasked_weight": missing("DiffSynth-Studio takes no masks", implied=0.1),
        "masked_loss.inverted": missing("DiffSynth-Studio takes no masks", implied=False),
        "caption_dropout": missing("DiffSynth-Studio cannot drop captions", implied=0.0),
        "max_grad_norm": missing("DiffSynth-Studio does not clip gradients"),
        "buckets.resolution_px": key("max_pixels"),
        "buckets.bucket_step_px": missing("DiffSynth-Studio aligns pictures of this model to 16 px", implied=16),
        "buckets.max_aspect": missing("DiffSynth-Studio keeps every photo's own aspect, however long"),
        "buckets.reference_resolution_px": missing(
            "DiffSynth-Studio brings references to about 1024² px", implied=None
        ),
        "save_every": key("save_steps"),
        "seed": missing("DiffSynth-Studio has no seed"),
        "precision": missing("DiffSynth-Studio trains in bfloat16", implied="bfloat16"),
        "gradient_checkpointing": key("use_gradient_checkpointing").but(
            lambda training: not training.gradient_checkpointing,
            "the flag is left out, which DiffSynth-Studio's own examples never do: watch the memory",
        ),
    },
)


class DiffSynthStudio:
    """Writes data/<role>/, data/metadata.json and config/train.sh; overrides are its flags."""

    TRAINER = DIFFSYNTH_STUDIO

    def export(self, stage: ExportStage, samples: Sequence[Sample], folder: ExportFolder) -> list[str]:
        """Write the dataset and the flags; returns warnings, one line each."""
        dataset = write_dataset(folder, samples, stage, DIFFSYNTH_STUDIO, captions=False)
        layout, warnings = base_of(stage, DIFFSYNTH_STUDIO)
        warnings += file_warning(stage)
        folder.write_json("data/metadata.json", metadata_of(dataset))
        values = overlay(values_of(stage, dataset, layout, model_place(stage, folder)), stage.overrides)
        program = ["accelerate", "launch", "$DIFFSYNTH_STUDIO/examples/flux2/model_training/train.py"]
        write_script(folder, "DIFFSYNTH_STUDIO", DIFFSYNTH_STUDIO.title, [[*program, *flags(values)]])
        check_complete(folder, dataset)
        return warnings + step_warnings(stage.training, dataset)


def metadata_of(dataset: Dataset) -> list[dict[str, Any]]:
    """One entry a sample and repeat, with paths relative to data/."""
    rows = []
    for sample, places, repeats in dataset.rows():
        paths = {role: path.removeprefix("data/") for role, path in places.items()}
        row: dict[str, Any] = {"image": paths[dataset.learned], "prompt": sample.caption}
        if dataset.references:
            row["edit_image"] = [paths[role] for role in dataset.references]
        rows += [row] * repeats
    return rows


def passes(training: TrainingSettings, dataset: Dataset) -> int:
    """How often it goes through the data to make at least the steps that are wanted."""
    return math.ceil(training.fixed_steps * training.gradient_accumulation / dataset.samples_an_epoch)


def step_warnings(training: TrainingSettings, dataset: Dataset) -> list[str]:
    made = passes(training, dataset) * dataset.samples_an_epoch / training.gradient_accumulation
    if made == training.fixed_steps:
        return []
    return [
        f"training.steps = {training.fixed_steps}: DiffSynth-Studio goes through the whole data, "
        f"{passes(training, dataset)} times {dataset.samples_an_epoch} samples, which makes {made:g} steps"
    ]


def values_of(stage: ExportStage, dataset: Dataset, layout: Layout, model: str) -> dict[str, Any]:
    """The flags of the program; `model` is the base model as it finds it."""
    training = stage.training
    endings = module_endings(training.targets, layout)
    single = rf".*\.{re.escape(endings[0])}" if len(endings) == 1 else None  # one name alone is read as a pattern
    values: dict[str, Any] = {
        "dataset_base_path": "data",
        "dataset_metadata_path": "data/metadata.json",
        "data_file_keys": "image,edit_image" if dataset.references else "image",
        "extra_inputs": "edit_image" if dataset.references else None,
        "max_pixels": training.buckets.resolution_px**2,
        "dataset_repeat": passes(training, dataset),
        "dataset_num_workers": 2,
        **model_flags(stage, layout, model),
        "learning_rate": training.learning_rate,
        "weight_decay": training.optimizer.weight_decay,
        "customized_optimizer": OPTIMIZERS[training.optimizer.name],
        "num_epochs": 1,
        "remove_prefix_in_ckpt": "pipe.dit.",
        "output_path": OUTPUT,
        "save_steps": training.save_every * training.gradient_accumulation,
        "lora_base_model": "dit",
        "lora_target_modules": single or ",".join(endings),
        "lora_rank": training.rank,
        "use_gradient_checkpointing": training.gradient_checkpointing,
        "gradient_accumulation_steps": training.gradient_accumulation,
        "enable_tensorboard_log": True,
    }
    return values


def model_flags(stage: ExportStage, layout: Layout, model: str) -> dict[str, Any]:
    """Text encoder, tokenizer and VAE come from the distilled repository, as only that one is sure to hold them.

    The transformer of a local folder is a list of its files, since the other flag asks the hub.
    """
    family = f"black-forest-labs/FLUX.2-{layout.name[:-1]}{layout.name[-1].upper()}"
    text, vae = f"{family}:text_encoder/*.safetensors", f"{family}:vae/diffusion_pytorch_model.safetensors"
    tokenizer = {"tokenizer_path": f"{family}:tokenizer/"}
    if local_model(stage) is None:
        return {"model_id_with_origin_paths": f"{text},{model}:transformer/*.safetensors,{vae}", **tokenizer}
    files = [f"{model}/transformer/{name}" for name in transformer_files(stage)]
    return {"model_paths": json.dumps([files]), "model_id_with_origin_paths": f"{text},{vae}", **tokenizer}


def transformer_files(stage: ExportStage) -> list[str]:
    """Names of the weight files of a local transformer; none where there is no such folder."""
    local = local_model(stage)
    return [] if local is None else sorted(path.name for path in (local / "transformer").glob("*.safetensors"))


def file_warning(stage: ExportStage) -> list[str]:
    if local_model(stage) is None or transformer_files(stage):
        return []
    return [
        f"base_model {stage.base_model.source}: DiffSynth-Studio needs its transformer/*.safetensors, which are absent"
    ]
