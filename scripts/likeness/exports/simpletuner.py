"""Render a phase for SimpleTuner: one folder a role with identical file names, data backends, and its config.

SimpleTuner joins a target with its references and mask by the same relative path, ending included, in other folders;
several references need `conditioning_multidataset_sampling: combined`, and a caption file with two lines counts as two
captions. Photos with different repeats go to different folders, as repeats belong to a dataset. Paths in the config are
relative to the export's folder: run `simpletuner train` inside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from likeness.config.exports import ExportStage
from likeness.config.training import TrainingSettings
from likeness.exports.dataset import (
    HUB_IDS,
    OUTPUT,
    PIPELINE_REFERENCE_PX,
    Dataset,
    base_of,
    check_complete,
    checkpoints_of,
    constant_shift,
    model_place,
    overlay,
    prompts_of,
    write_dataset,
)
from likeness.exports.files import ExportFolder
from likeness.exports.samples import SOURCE, Sample
from likeness.exports.settings import Output, Trainer, common, in_files, is_between_levels, key, missing
from likeness.exports.targets import module_endings
from likeness.klein.family import Layout

OPTIMIZERS = {"adamw": "optimi-adamw", "adamw8bit": "bnb-adamw8bit", "prodigy": "prodigy"}

SIMPLETUNER = Trainer(
    title="SimpleTuner",
    max_references=4,
    output=Output(rf"{OUTPUT}/(checkpoint-(?P<step>\d+)/)?pytorch_lora_weights\.safetensors"),
    settings=common("SimpleTuner")
    | {
        "rank": key("lora_rank"),
        "alpha": key("lora_alpha"),
        "targets": key("peft_lora_target_modules"),
        "init": key("lora_init_type"),
        "steps": key("max_train_steps"),
        "batch_size": key("train_batch_size"),
        "gradient_accumulation": key("gradient_accumulation_steps"),
        "learning_rate": key("learning_rate"),
        "optimizer.name": key("optimizer").but(
            lambda training: training.optimizer.name == "prodigy",
            "SimpleTuner's prodigy is the schedule-free one of prodigy-plus, not prodigyopt's",
        ),
        "optimizer.weight_decay": key("optimizer_config"),
        "optimizer.beta1": key("optimizer_beta1"),
        "optimizer.beta2": key("optimizer_beta2"),
        "optimizer.eps": key("optimizer_config"),
        "schedule.name": key("lr_scheduler").but(
            lambda training: training.schedule.name == "cosine",
            "SimpleTuner's cosine starts anew after every warm-up length, "
            "so the rate falls in a straight line to zero instead (polynomial of power 1)",
        ),
        "schedule.warmup_steps": key("lr_warmup_steps"),
        "sigma.distribution": key("flow_use_uniform_schedule", "flow_schedule_shift"),
        "sigma.scale": key("flow_sigmoid_scale"),
        "sigma.bias": missing("SimpleTuner draws its noise levels around zero", implied=0.0),
        "sigma.shift": key("flow_schedule_shift"),
        "masked_loss.kind": in_files("the dataset of masks").but(
            lambda training: training.masked_loss.kind is not None,
            "SimpleTuner multiplies the loss by the mask and does not divide by its area, "
            "so photos with a small mask count less than here",
        ),
        "masked_loss.inverted": in_files("inside and outside exchanged in the masks"),
        "masked_loss.unmasked_weight": in_files("grey level of the masks outside").but(
            is_between_levels,
            "masks have 256 levels, so it becomes the nearest of them",
        ),
        "caption_dropout": key("caption_dropout_probability"),
        "max_grad_norm": key("max_grad_norm"),
        "buckets.resolution_px": key("resolution"),
        "buckets.bucket_step_px": missing("SimpleTuner aligns the buckets of this model to 16 px", implied=16),
        "buckets.max_aspect": missing("SimpleTuner keeps every photo's own aspect, however long"),
        "buckets.reference_resolution_px": in_files("resolution of the reference datasets"),
        "save_every": key("checkpoint_step_interval"),
        "seed": key("seed"),
        "precision": key("mixed_precision", "base_model_default_dtype"),
        "gradient_checkpointing": key("gradient_checkpointing"),
        "allow_distilled": missing("SimpleTuner's flavours of this model are the base checkpoints", implied=False),
    },
)


class SimpleTuner:
    """Writes data/<role>/, config/config.json, config/multidatabackend.json and config/prompts.json."""

    TRAINER = SIMPLETUNER

    def export(self, stage: ExportStage, samples: Sequence[Sample], folder: ExportFolder) -> list[str]:
        """Write the dataset and its config; returns warnings, one line each."""
        dataset = write_dataset(folder, samples, stage, SIMPLETUNER)
        backends = [
            entry
            for group in dataset.groups
            for entry in backends_of(dataset, group.suffix, group.repeats, stage.training)
        ]
        backends.append(
            {
                "id": "text-embeds",
                "type": "local",
                "dataset_type": "text_embeds",
                "default": True,
                "cache_dir": "cache/text",
                "write_batch_size": 64,
            }
        )
        layout, warnings = base_of(stage, SIMPLETUNER)
        folder.write_json("config/multidatabackend.json", backends)
        folder.write_json(
            "config/config.json",
            overlay(config_of(stage, dataset, layout, model_place(stage, folder)), stage.overrides),
        )
        folder.write_json("config/prompts.json", prompts_of(stage))
        check_complete(folder, dataset)
        return warnings


def backends_of(dataset: Dataset, suffix: str, repeats: int, training: TrainingSettings) -> list[dict[str, Any]]:
    """The data backends of one group: what is learned first, then references and mask that refer to it."""
    learned, conditioning = dataset.learned, list(dataset.references)
    mask = [f"mask-{training.masked_loss.kind}"] if training.masked_loss.kind else []
    linked = {"conditioning_data": [f"{name}{suffix}" for name in conditioning + mask]}
    first = backend(f"{learned}{suffix}", "image", training.buckets.resolution_px) | {
        "caption_strategy": "textfile",
        "metadata_backend": "discovery",
        "repeats": repeats - 1,
        **(linked if conditioning or mask else {}),
    }
    found = [first]
    for role in conditioning:
        found.append(reference_dataset(role, suffix, learned, training))
    for name in mask:
        entry = backend(f"{name}{suffix}", "conditioning", training.buckets.resolution_px)
        del entry["cache_dir_vae"]  # masks are not encoded
        found.append(entry | {"conditioning_type": "mask", "source_dataset_id": f"{learned}{suffix}"})
    return found


def backend(name: str, dataset_type: str, resolution_px: int) -> dict[str, Any]:
    return {
        "id": name,
        "type": "local",
        "dataset_type": dataset_type,
        "instance_data_dir": f"data/{name}",
        "resolution": resolution_px,
        "resolution_type": "pixel_area",
        "crop": False,
        "cache_dir_vae": f"cache/vae/{name}",
    }


def reference_dataset(role: str, suffix: str, learned: str, training: TrainingSettings) -> dict[str, Any]:
    """A reference's backend: the source follows the target's crop where both have one resolution, others are free."""
    own_px = training.buckets.reference_resolution_px
    strict = role == SOURCE and own_px in (None, training.buckets.resolution_px)
    resolution_px = training.buckets.resolution_px if strict else own_px or PIPELINE_REFERENCE_PX
    entry = backend(f"{role}{suffix}", "conditioning", resolution_px)
    if strict:
        return entry | {"conditioning_type": "reference_strict", "source_dataset_id": f"{learned}{suffix}"}
    return entry | {"conditioning_type": "reference_loose"}


def config_of(stage: ExportStage, dataset: Dataset, layout: Layout, model: str) -> dict[str, Any]:
    """SimpleTuner's config.json; `model` is the base model as the trainer finds it."""
    training = stage.training
    config = (
        model_keys(stage, layout, model)
        | adapter_keys(training, layout)
        | optimizer_keys(training)
        | sigma_keys(training)
    )
    config |= {
        "train_batch_size": training.batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation,
        "gradient_checkpointing": training.gradient_checkpointing,
        "max_train_steps": training.fixed_steps,
        "num_train_epochs": 0,
        "caption_dropout_probability": training.caption_dropout,
        "masked_loss_probability": 1.0 if dataset.masked else 0.0,
        "use_ema": False,
        "seed": training.seed,
        "data_backend_config": "config/multidatabackend.json",
        "resolution": training.buckets.resolution_px,
        "resolution_type": "pixel_area",
        "checkpoint_step_interval": training.save_every,
        "checkpoints_total_limit": checkpoints_of(training),
        "resume_from_checkpoint": "latest",
        "output_dir": OUTPUT,
        "report_to": "tensorboard",
        "tracker_project_name": "likeness",
        "tracker_run_name": stage.trigger,
    }
    if dataset.references:
        config["conditioning_multidataset_sampling"] = "combined"
    return config | validation_keys(stage, bool(dataset.references))


def model_keys(stage: ExportStage, layout: Layout, model: str) -> dict[str, Any]:
    """Which model is trained and in which number type."""
    full = stage.training.precision == "float32"
    keys: dict[str, Any] = {
        "model_type": "lora",
        "model_family": "flux2",
        "model_flavour": layout.name,
        "base_model_precision": "no_change",
        "text_encoder_1_precision": "no_change",
        "base_model_default_dtype": "fp32" if full else "bf16",
        "mixed_precision": "no" if full else "bf16",
    }
    if model != HUB_IDS[layout.name]:
        keys["pretrained_model_name_or_path"] = model
    if stage.base_model.revision:
        keys["revision"] = stage.base_model.revision
    return keys


def adapter_keys(training: TrainingSettings, layout: Layout) -> dict[str, Any]:
    """Rank, alpha, start and targets of the adapter; SimpleTuner's own dropout of 0.1 is switched off."""
    return {
        "lora_type": "standard",
        "lora_rank": training.rank,
        "lora_alpha": training.resolved_alpha,
        "lora_dropout": 0.0,
        "lora_init_type": "default" if training.init == "kaiming" else "gaussian",
        "lora_format": "diffusers",
        "peft_lora_target_modules": module_endings(training.targets, layout),
    }


def optimizer_keys(training: TrainingSettings) -> dict[str, Any]:
    """Optimizer, clipping and learning rate; the norm is clipped, which is not SimpleTuner's default."""
    optimizer, cosine = training.optimizer, training.schedule.name == "cosine"
    warmup = training.schedule.warmup_steps
    keys: dict[str, Any] = {
        "optimizer": OPTIMIZERS[optimizer.name],
        "optimizer_beta1": optimizer.beta1,
        "optimizer_beta2": optimizer.beta2,
        "optimizer_config": f"weight_decay={optimizer.weight_decay!r},eps={optimizer.eps!r}",
        "learning_rate": training.learning_rate,
        "lr_scheduler": "polynomial" if cosine else "constant_with_warmup" if warmup else "constant",
        "lr_warmup_steps": warmup,
        "max_grad_norm": training.max_grad_norm,
        "grad_clip_method": "norm",
    }
    return keys | ({"lr_end": 0.0, "lr_power": 1.0} if cosine else {})


def sigma_keys(training: TrainingSettings) -> dict[str, Any]:
    """Noise levels; the shift is always a number, as SimpleTuner's automatic one counts a quarter of the tokens."""
    return {
        "flow_use_uniform_schedule": training.sigma.distribution == "uniform",
        "flow_sigmoid_scale": training.sigma.scale,
        "flow_schedule_shift": constant_shift(training),
        "flow_schedule_auto_shift": False,
    }


def validation_keys(stage: ExportStage, has_references: bool) -> dict[str, Any]:
    """Sample images while it trains: the first prompt, or edits of the dataset's own sources; without prompts none."""
    side_px = stage.training.buckets.resolution_px
    return {
        "validation_step_interval": stage.training.save_every if stage.prompts else stage.training.fixed_steps + 1,
        "validation_prompt": next(iter(prompts_of(stage).values()), stage.trigger),
        "user_prompt_library": "config/prompts.json",
        "validation_using_datasets": has_references,
        "validation_guidance": 4.0,
        "validation_num_inference_steps": 20,
        "validation_resolution": f"{side_px}x{side_px}",
        "validation_seed": stage.training.seed,
    }
