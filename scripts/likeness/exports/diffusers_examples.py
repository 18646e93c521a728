"""Render a phase for the example scripts of diffusers: an image folder with its metadata, and the script's flags.

There is one script for photos and one for pairs, which takes one reference; the text encoder's layers must be given, as
the first one's default is that of another model. Repeats become copies of the files. Paths are relative to the export's
folder: run `bash config/train.sh` inside it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from likeness.config.exports import ExportStage
from likeness.exports.dataset import (
    OUTPUT,
    TOKEN_PX,
    Dataset,
    base_of,
    check_complete,
    checkpoints_of,
    model_place,
    overlay,
    write_dataset,
)
from likeness.exports.files import ExportFolder
from likeness.exports.samples import Sample
from likeness.exports.script import flags, write_script
from likeness.exports.settings import Output, Trainer, common, key, missing
from likeness.exports.targets import module_endings
from likeness.klein.family import TEXT_LAYERS, Layout
from likeness.training.buckets import bucket_sizes

ROOT = "data/train"
"""Metadata is read beside the pictures of a split only."""
SCRIPTS = {
    False: "train_dreambooth_lora_flux2_klein.py",
    True: "train_dreambooth_lora_flux2_klein_img2img.py",
}

DIFFUSERS = Trainer(
    title="the diffusers example",
    max_references=1,
    references=(
        "the diffusers example brings the reference to the target's size",
        "the diffusers example for pairs cannot drop captions",
    ),
    output=Output(rf"{OUTPUT}/(checkpoint-(?P<step>\d+)/)?pytorch_lora_weights\.safetensors"),
    settings=common("the diffusers example")
    | {
        "rank": key("rank"),
        "alpha": key("lora_alpha").but(
            lambda training: training.resolved_alpha != int(training.resolved_alpha) or training.resolved_alpha < 1,
            "the diffusers example takes whole numbers, so it is rounded",
        ),
        "targets": key("lora_layers"),
        "init": missing("the diffusers example starts its down matrices from a normal draw", implied="gaussian"),
        "steps": key("max_train_steps"),
        "batch_size": key("train_batch_size"),
        "gradient_accumulation": key("gradient_accumulation_steps"),
        "learning_rate": key("learning_rate"),
        "optimizer.name": key("optimizer"),
        "optimizer.weight_decay": key("adam_weight_decay"),
        "optimizer.beta1": key("adam_beta1"),
        "optimizer.beta2": key("adam_beta2"),
        "optimizer.eps": key("adam_epsilon"),
        "schedule.name": key("lr_scheduler"),
        "schedule.warmup_steps": key("lr_warmup_steps"),
        "sigma.distribution": key("weighting_scheme").but(
            lambda training: training.sigma.distribution == "shifted",
            "the diffusers example does not shift; it draws from the sigmoid alone",
        ),
        "sigma.scale": key("logit_std"),
        "sigma.bias": key("logit_mean"),
        "sigma.shift": missing("the diffusers example does not shift", implied="linear"),
        "masked_loss.kind": missing("the diffusers example takes no masks; it learns the whole picture", implied=None),
        "masked_loss.unmasked_weight": missing("the diffusers example takes no masks", implied=0.1),
        "masked_loss.inverted": missing("the diffusers example takes no masks", implied=False),
        "caption_dropout": key("caption_dropout"),
        "max_grad_norm": key("max_grad_norm"),
        "buckets.resolution_px": key("aspect_ratio_buckets"),
        "buckets.bucket_step_px": key("aspect_ratio_buckets"),
        "buckets.max_aspect": key("aspect_ratio_buckets"),
        "buckets.reference_resolution_px": missing(
            "the diffusers example brings the reference to the target's size",
            unless=lambda training: training.buckets.reference_resolution_px == training.buckets.resolution_px,
        ),
        "save_every": key("checkpointing_steps"),
        "seed": key("seed"),
        "precision": key("mixed_precision"),
        "gradient_checkpointing": key("gradient_checkpointing"),
    },
)


class DiffusersExamples:
    """Writes data/train/<role>/, data/train/metadata.jsonl and config/train.sh; overrides are the script's flags."""

    TRAINER = DIFFUSERS

    def export(self, stage: ExportStage, samples: Sequence[Sample], folder: ExportFolder) -> list[str]:
        """Write the dataset and the flags; returns warnings, one line each."""
        copies = [copy for sample in samples for copy in copies_of(sample)]
        dataset = write_dataset(folder, copies, stage, DIFFUSERS, root=ROOT, captions=False)
        layout, warnings = base_of(stage, DIFFUSERS)
        rows = [json.dumps(row, ensure_ascii=False) + "\n" for row in metadata_of(dataset)]
        folder.write_text(f"{ROOT}/metadata.jsonl", "".join(rows))
        has_reference = bool(dataset.references)
        values = values_of(stage, layout, model_place(stage, folder)) | data_flags(stage, has_reference)
        program = ["accelerate", "launch", f"$DIFFUSERS/examples/dreambooth/{SCRIPTS[has_reference]}"]
        write_script(folder, "DIFFUSERS", "diffusers", [[*program, *flags(overlay(values, stage.overrides))]])
        check_complete(folder, dataset)
        return warnings


def copies_of(sample: Sample) -> list[Sample]:
    """A sample as often as it is repeated, each with a name of its own."""
    names = [sample.name if number == 1 else f"{sample.name}--copy{number}" for number in range(1, sample.repeats + 1)]
    return [replace(sample, name=name, repeats=1) for name in names]


def metadata_of(dataset: Dataset) -> list[dict[str, str]]:
    """One row a sample; columns that end in `file_name` are read as images."""
    rows = []
    for sample, places, _ in dataset.rows():
        paths = {role: path.removeprefix(f"{ROOT}/") for role, path in places.items()}
        if dataset.references:
            images = {"image_file_name": paths[dataset.learned], "cond_image_file_name": paths[dataset.references[0]]}
        else:
            images = {"file_name": paths[dataset.learned]}
        rows.append(images | {"caption": sample.caption})
    return rows


def data_flags(stage: ExportStage, has_reference: bool) -> dict[str, Any]:
    """Flags of one of the two scripts only."""
    if has_reference:
        return {"cond_image_column": "cond_image"}
    return {
        "caption_dropout": stage.training.caption_dropout,
        "text_encoder_out_layers": list(TEXT_LAYERS),
        "use_aspect_ratio_buckets": True,
    }


def values_of(stage: ExportStage, layout: Layout, model: str) -> dict[str, Any]:
    """The flags of both scripts; `model` is the base model as they find it."""
    training, optimizer, sigma = stage.training, stage.training.optimizer, stage.training.sigma
    sizes = bucket_sizes(training.buckets, TOKEN_PX)
    is_uniform = sigma.distribution == "uniform"
    warmup = training.schedule.warmup_steps
    constant = "constant_with_warmup" if warmup else "constant"
    return {
        "pretrained_model_name_or_path": model,
        "revision": stage.base_model.revision,
        "dataset_name": "data",
        "image_column": "image",
        "caption_column": "caption",
        "instance_prompt": stage.trigger,
        "output_dir": OUTPUT,
        "rank": training.rank,
        "lora_alpha": max(1, round(training.resolved_alpha)),
        "lora_layers": ",".join(module_endings(training.targets, layout)),
        "aspect_ratio_buckets": ";".join(f"{height_px},{width_px}" for width_px, height_px in sizes),
        "train_batch_size": training.batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation,
        "gradient_checkpointing": training.gradient_checkpointing,
        "max_train_steps": training.fixed_steps,
        "checkpointing_steps": training.save_every,
        "checkpoints_total_limit": checkpoints_of(training),
        "resume_from_checkpoint": "latest",
        "learning_rate": training.learning_rate,
        "lr_scheduler": "cosine" if training.schedule.name == "cosine" else constant,
        "lr_warmup_steps": warmup,
        "weighting_scheme": "none" if is_uniform else "logit_normal",
        "logit_mean": None if is_uniform else sigma.bias,
        "logit_std": None if is_uniform else sigma.scale,
        "optimizer": "prodigy" if optimizer.name == "prodigy" else "AdamW",
        "use_8bit_adam": optimizer.name == "adamw8bit",
        "adam_beta1": optimizer.beta1,
        "adam_beta2": optimizer.beta2,
        "adam_weight_decay": optimizer.weight_decay,
        "adam_epsilon": optimizer.eps,
        "max_grad_norm": training.max_grad_norm,
        "seed": training.seed,
        "mixed_precision": "no" if training.precision == "float32" else "bf16",
        "cache_latents": True,
        "skip_final_inference": True,
        "report_to": "tensorboard",
    }
