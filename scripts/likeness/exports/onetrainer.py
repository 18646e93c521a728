"""Render a phase for OneTrainer: photos with their masks beside them, its config, concepts and samples.

A mask is called like its image with `-masklabel` appended. It counts epochs, not steps, and trains no edits. Its concepts
flip and jitter photos unless they are told not to. Paths are relative to the export's folder: run
`python <OneTrainer>/scripts/train.py --config-path config/onetrainer.json` inside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from likeness.config.exports import ExportStage
from likeness.config.training import TrainingSettings
from likeness.exports.dataset import (
    NAME,
    OUTPUT,
    Dataset,
    base_of,
    check_complete,
    constant_shift,
    model_place,
    overlay,
    prompts_of,
    write_dataset,
)
from likeness.exports.files import ExportFolder
from likeness.exports.samples import Sample
from likeness.exports.settings import Output, Trainer, common, in_files, key, missing
from likeness.klein.family import Layout
from likeness.klein.targets import target_regex

OPTIMIZERS = {"adamw": "ADAMW", "adamw8bit": "ADAMW_8BIT", "prodigy": "PRODIGY"}

ONETRAINER = Trainer(
    title="OneTrainer",
    max_references=0,
    output=Output(rf"{OUTPUT}/(save/.*-save-(?P<step>\d+)-\d+-\d+|{NAME})\.safetensors", counts_micro_batches=True),
    settings=common("OneTrainer")
    | {
        "rank": key("lora_rank"),
        "alpha": key("lora_alpha"),
        "targets": key("layer_filter"),
        "init": missing("OneTrainer starts its down matrices in the kaiming way", implied="kaiming"),
        "steps": key("epochs"),
        "batch_size": key("batch_size"),
        "gradient_accumulation": key("gradient_accumulation_steps"),
        "learning_rate": key("learning_rate"),
        "optimizer.name": key("optimizer"),
        "optimizer.weight_decay": key("weight_decay"),
        "optimizer.beta1": key("beta1"),
        "optimizer.beta2": key("beta2"),
        "optimizer.eps": key("eps"),
        "schedule.name": key("learning_rate_scheduler"),
        "schedule.warmup_steps": key("learning_rate_warmup_steps"),
        "sigma.distribution": key("timestep_distribution"),
        "sigma.scale": key("noising_weight"),
        "sigma.bias": key("noising_bias"),
        "sigma.shift": key("dynamic_timestep_shifting", "timestep_shift"),
        "masked_loss.kind": key("masked_training"),
        "masked_loss.inverted": in_files("inside and outside exchanged in the masks"),
        "masked_loss.unmasked_weight": key("unmasked_weight"),
        "caption_dropout": key("dropout_probability"),
        "max_grad_norm": key("clip_grad_norm"),
        "buckets.resolution_px": key("resolution"),
        "buckets.bucket_step_px": missing("OneTrainer has its own steps between buckets"),
        "buckets.max_aspect": missing("OneTrainer has its own list of aspects"),
        "buckets.reference_resolution_px": missing("OneTrainer trains this model without references", implied=None),
        "save_every": key("save_every"),
        "seed": missing("OneTrainer's noise follows the number of the step, not a seed"),
        "precision": key("train_dtype"),
        "gradient_checkpointing": key("gradient_checkpointing"),
    },
)


class OneTrainer:
    """Writes data/photo/, config/onetrainer.json, config/concepts.json and config/samples.json."""

    TRAINER = ONETRAINER

    def export(self, stage: ExportStage, samples: Sequence[Sample], folder: ExportFolder) -> list[str]:
        """Write the dataset and its config; returns warnings, one line each."""
        dataset = write_dataset(folder, samples, stage, ONETRAINER, outside=0.0, mask_place=beside_the_photo)
        layout, warnings = base_of(stage, ONETRAINER)
        config = overlay(config_of(stage, dataset, layout, model_place(stage, folder)), stage.overrides)
        folder.write_json("config/onetrainer.json", config)
        folder.write_json("config/concepts.json", concepts_of(dataset))
        folder.write_json("config/samples.json", samples_of(stage))
        check_complete(folder, dataset)
        return warnings + step_warnings(stage.training, dataset)


def beside_the_photo(kind: str, learned: str, suffix: str, name: str) -> str:
    """OneTrainer looks for a mask beside its image."""
    return f"data/{learned}{suffix}/{name}-masklabel.png"


def epochs_of(training: TrainingSettings, dataset: Dataset) -> int:
    """Epochs that make at least the wanted steps, if all photos were of one bucket."""
    wanted = training.fixed_steps * training.gradient_accumulation * training.batch_size
    return math.ceil(wanted / dataset.samples_an_epoch)


def step_warnings(training: TrainingSettings, dataset: Dataset) -> list[str]:
    epochs = epochs_of(training, dataset)
    made = epochs * dataset.samples_an_epoch / training.batch_size / training.gradient_accumulation
    if made == training.fixed_steps and training.batch_size == 1:
        return []
    return [
        f"training.steps = {training.fixed_steps}: OneTrainer counts epochs; {epochs} epochs of {dataset.samples_an_epoch} "
        f"samples make about {made:g} steps, fewer where buckets leave batches unfilled"
    ]


def config_of(stage: ExportStage, dataset: Dataset, layout: Layout, model: str) -> dict[str, Any]:
    """OneTrainer's config; `model` is the base model as the trainer finds it, and steps are micro-batches."""
    training = stage.training
    number_type = "FLOAT_32" if training.precision == "float32" else "BFLOAT_16"
    return {
        "training_method": "LORA",
        "model_type": "FLUX_2",
        "base_model_name": model,
        "workspace_dir": OUTPUT,
        "cache_dir": "cache",
        "output_model_destination": f"{OUTPUT}/{NAME}.safetensors",
        "output_model_format": "DIFFUSERS_LORA",
        "output_dtype": number_type,
        "concept_file_name": "config/concepts.json",
        "sample_definition_file_name": "config/samples.json",
        "train_dtype": number_type,
        "resolution": str(training.buckets.resolution_px),
        "batch_size": training.batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation,
        "gradient_checkpointing": "ON" if training.gradient_checkpointing else "OFF",
        "epochs": epochs_of(training, dataset),
        **optimizer_keys(training),
        "transformer": {"train": True, "weight_dtype": number_type},
        "text_encoder": {
            "train": False,
            "weight_dtype": number_type,
            "dropout_probability": training.caption_dropout,
        },
        "vae": {"weight_dtype": "FLOAT_32"},
        "peft_type": "LORA",
        "lora_rank": training.rank,
        "lora_alpha": training.resolved_alpha,
        "lora_weight_dtype": "FLOAT_32",
        "dropout_probability": 0.0,
        "layer_filter": f"^({target_regex(training.targets, layout)})$",
        "layer_filter_preset": "custom",
        "layer_filter_regex": True,
        **sigma_keys(training),
        "offset_noise_weight": 0.0,
        "masked_training": dataset.masked,
        "unmasked_probability": 0.0,
        "unmasked_weight": training.masked_loss.unmasked_weight,
        # Divides by the mask's mean, so that a photo with a small face counts as much as another, as here.
        "normalize_masked_area_loss": True,
        "masked_prior_preservation_weight": 0.0,
        "ema": "OFF",
        "latent_caching": True,
        "aspect_ratio_bucketing": True,
        "save_every": training.save_every * training.gradient_accumulation,
        "save_every_unit": "STEP",
        "sample_after": training.save_every * training.gradient_accumulation if stage.prompts else 0,
        "sample_after_unit": "STEP" if stage.prompts else "NEVER",
        "tensorboard": True,
    }


def optimizer_keys(training: TrainingSettings) -> dict[str, Any]:
    optimizer = training.optimizer
    return {
        "learning_rate": training.learning_rate,
        "learning_rate_scheduler": training.schedule.name.upper(),
        "learning_rate_warmup_steps": training.schedule.warmup_steps,
        "optimizer": {
            "optimizer": OPTIMIZERS[optimizer.name],
            "weight_decay": optimizer.weight_decay,
            "beta1": optimizer.beta1,
            "beta2": optimizer.beta2,
            "eps": optimizer.eps,
        },
        "clip_grad_norm": training.max_grad_norm,
    }


def sigma_keys(training: TrainingSettings) -> dict[str, Any]:
    """Noise levels; the weight is what the width has above 1."""
    sigma = training.sigma
    return {
        "timestep_distribution": "UNIFORM" if sigma.distribution == "uniform" else "LOGIT_NORMAL",
        "noising_weight": sigma.scale - 1.0 if sigma.distribution != "uniform" else 0.0,
        "noising_bias": sigma.bias if sigma.distribution != "uniform" else 0.0,
        "dynamic_timestep_shifting": sigma.distribution == "shifted" and sigma.shift == "linear",
        "timestep_shift": 1.0 if sigma.shift == "linear" else constant_shift(training),
    }


def concepts_of(dataset: Dataset) -> list[dict[str, Any]]:
    """One concept a group of repeats; photos are neither flipped nor jittered, as here."""
    return [
        {
            "name": f"{dataset.learned}{group.suffix}",
            "path": group.folder(dataset.learned),
            "enabled": True,
            "include_subdirectories": False,
            "image_variations": 1,
            "text_variations": 1,
            "balancing": float(group.repeats),
            "balancing_strategy": "REPEATS",
            "loss_weight": 1.0,
            "image": {"enable_crop_jitter": False, "enable_random_flip": False},
            "text": {"prompt_source": "sample"},
        }
        for group in dataset.groups
    ]


def samples_of(stage: ExportStage) -> list[dict[str, Any]]:
    side_px = stage.training.buckets.resolution_px
    return [
        {"enabled": True, "prompt": text, "negative_prompt": "", "width": side_px, "height": side_px, "seed": 42}
        for text in prompts_of(stage).values()
    ]
