"""Render a phase for diffusion-pipe: one folder a role joined by equal file stems, its training TOML and dataset TOML.

It reads single model files, trains every linear module of the blocks but those whose name a pattern excludes, and takes
one reference, brought to the target's size. Its automatic shift counts a quarter of the tokens, so the shift is always
a number. Paths are relative to the export's folder: run
`deepspeed --num_gpus=1 <diffusion-pipe>/train.py --deepspeed --config config/diffusion-pipe.toml` inside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tomli_w

from likeness.config.exports import ExportStage
from likeness.config.training import TrainingSettings
from likeness.exports.dataset import (
    OUTPUT,
    Dataset,
    base_of,
    check_complete,
    constant_shift,
    overlay,
    single_files,
    write_dataset,
)
from likeness.exports.files import ExportFolder
from likeness.exports.samples import Sample
from likeness.exports.settings import Output, Trainer, common, in_files, is_between_levels, is_whole_rank, key, missing
from likeness.exports.targets import impossible_warning, original_modules, pattern_of

OPTIMIZERS = {"adamw": "adamw", "adamw8bit": "adamw8bit", "prodigy": "Prodigy"}
FILES = {
    "model.diffusion_model": "flux-2-klein-base-{size}.safetensors",
    "model.vae": "flux2-vae.safetensors",
    "text_encoder": "qwen_3_{text}.safetensors",
}
"""Single files by the key in the overrides; the text encoder's own key lies in a list, so it has a short name here."""

DIFFUSION_PIPE = Trainer(
    title="diffusion-pipe",
    max_references=1,
    references=("diffusion-pipe brings the reference to the target's size",),
    output=Output(rf"{OUTPUT}/[^/]+/(step(?P<step>\d+)|epoch\d+)/adapter_model\.safetensors"),
    settings=common("diffusion-pipe")
    | {
        "rank": key("rank"),
        "alpha": missing("diffusion-pipe trains with alpha equal to the rank", unless=is_whole_rank),
        "targets": key("exclude_modules"),
        "init": missing("diffusion-pipe starts its down matrices in the kaiming way", implied="kaiming"),
        "steps": key("max_steps"),
        "batch_size": key("micro_batch_size_per_gpu"),
        "gradient_accumulation": key("gradient_accumulation_steps"),
        "learning_rate": key("lr"),
        "optimizer.name": key("type"),
        "optimizer.weight_decay": key("weight_decay"),
        "optimizer.beta1": key("betas"),
        "optimizer.beta2": key("betas"),
        "optimizer.eps": key("eps"),
        "schedule.name": key("lr_scheduler"),
        "schedule.warmup_steps": key("warmup_steps"),
        "sigma.distribution": key("timestep_sample_method"),
        "sigma.scale": key("sigmoid_scale"),
        "sigma.bias": missing("diffusion-pipe draws its noise levels around zero", implied=0.0),
        "sigma.shift": key("shift"),
        "masked_loss.kind": key("mask_path").but(
            lambda training: training.masked_loss.kind is not None,
            "diffusion-pipe multiplies the loss by the mask and does not divide by its area, "
            "so photos with a small mask count less than here",
        ),
        "masked_loss.inverted": in_files("inside and outside exchanged in the masks"),
        "masked_loss.unmasked_weight": in_files("grey level of the masks outside").but(
            is_between_levels, "masks have 256 levels, so it becomes the nearest of them"
        ),
        "caption_dropout": key("uncond_fraction"),
        "max_grad_norm": key("gradient_clipping"),
        "buckets.resolution_px": key("resolutions"),
        "resolutions_px": key("resolutions"),
        "buckets.bucket_step_px": missing("diffusion-pipe aligns the buckets of this model to 16 px", implied=16),
        "buckets.max_aspect": key("min_ar", "max_ar"),
        "buckets.reference_resolution_px": missing(
            "diffusion-pipe brings the reference to the target's size",
            unless=lambda training: training.buckets.reference_resolution_px == training.buckets.resolution_px,
        ),
        "save_every": key("save_every_n_steps"),
        "seed": missing("diffusion-pipe's seed is the number of its process"),
        "precision": key("dtype"),
        "gradient_checkpointing": key("activation_checkpointing"),
    },
)


class DiffusionPipe:
    """Writes data/<role>/, config/diffusion-pipe.toml and config/dataset.toml; overrides such as `model.vae`."""

    TRAINER = DIFFUSION_PIPE

    def export(self, stage: ExportStage, samples: Sequence[Sample], folder: ExportFolder) -> list[str]:
        """Write the dataset and its config; returns warnings, one line each."""
        dataset = write_dataset(folder, samples, stage, DIFFUSION_PIPE)
        layout, warnings = base_of(stage, DIFFUSION_PIPE)
        files, lacking = single_files(stage, DIFFUSION_PIPE, layout, FILES)
        _, outside, impossible = original_modules(stage.training.targets, layout)
        overrides = dict(stage.overrides)
        config = config_of(stage.training, files, str(overrides.pop("text_encoder", files["text_encoder"])))
        if outside:
            config["adapter"]["exclude_modules"] = pattern_of(outside)
        folder.write_text("config/diffusion-pipe.toml", tomli_w.dumps(overlay(config, overrides)))
        folder.write_text("config/dataset.toml", tomli_w.dumps(dataset_of(dataset, stage.training)))
        check_complete(folder, dataset)
        return warnings + lacking + impossible_warning(stage.training.targets, impossible, DIFFUSION_PIPE.title)


def config_of(training: TrainingSettings, files: dict[str, str], text_encoder: str) -> dict[str, Any]:
    """The training TOML; there are more epochs than steps, so that the steps decide when it ends."""
    optimizer, number_type = training.optimizer, training.precision
    return {
        "output_dir": OUTPUT,
        "dataset": "config/dataset.toml",
        "epochs": training.fixed_steps * training.gradient_accumulation,
        "max_steps": training.fixed_steps,
        "micro_batch_size_per_gpu": training.batch_size,
        "pipeline_stages": 1,
        "gradient_accumulation_steps": training.gradient_accumulation,
        "gradient_clipping": training.max_grad_norm,
        "warmup_steps": training.schedule.warmup_steps,
        "lr_scheduler": training.schedule.name,
        "uncond_fraction": training.caption_dropout,
        "blocks_to_swap": 0,
        "save_every_n_steps": training.save_every,
        "checkpoint_every_n_minutes": 60,
        "activation_checkpointing": training.gradient_checkpointing,
        "partition_method": "parameters",
        "save_dtype": number_type,
        "caching_batch_size": 1,
        "steps_per_print": 10,
        "model": {
            "type": "flux2",
            "diffusion_model": files["model.diffusion_model"],
            "vae": files["model.vae"],
            "text_encoders": [{"path": text_encoder, "type": "flux2"}],
            "dtype": number_type,
            **sigma_keys(training),
        },
        "adapter": {"type": "lora", "rank": training.rank, "dtype": number_type, "dropout": 0.0},
        "optimizer": {
            "type": OPTIMIZERS[optimizer.name],
            "lr": training.learning_rate,
            "betas": [optimizer.beta1, optimizer.beta2],
            "weight_decay": optimizer.weight_decay,
            "eps": optimizer.eps,
        },
        "monitoring": {"enable_wandb": False},
    }


def sigma_keys(training: TrainingSettings) -> dict[str, Any]:
    is_uniform = training.sigma.distribution == "uniform"
    return {
        "timestep_sample_method": "uniform" if is_uniform else "logit_normal",
        "sigmoid_scale": training.sigma.scale,
        "shift": constant_shift(training),
    }


def dataset_of(dataset: Dataset, training: TrainingSettings) -> dict[str, Any]:
    """The dataset TOML: one directory a group of repeats."""
    directories = []
    for group in dataset.groups:
        entry: dict[str, Any] = {"path": group.folder(dataset.learned), "num_repeats": group.repeats}
        if dataset.references:
            entry["control_path"] = group.folder(dataset.references[0])
        if dataset.masked:
            entry["mask_path"] = group.folder("mask")
        directories.append(entry)
    aspect = training.buckets.max_aspect
    return {
        "resolutions": [*training.all_resolutions_px],
        "enable_ar_bucket": True,
        "min_ar": 1 / aspect,
        "max_ar": aspect,
        "num_ar_buckets": 9 if aspect > 1 else 1,
        "directory": directories,
    }
