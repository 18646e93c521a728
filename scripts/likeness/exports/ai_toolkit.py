"""Render a phase for ai-toolkit: one folder a role joined by equal file stems, and its YAML job.

A control file that is missing moves the later references one place up without a word, so completeness is checked here.
The trigger word is left out of the config: it would be put in front of every caption that does not hold it. Names of
modules are the original code's, matched as parts of a module's name. Paths are relative to the export's folder: run
`python <ai-toolkit>/run.py config/ai-toolkit.yaml` inside it.
"""

from __future__ import annotations

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
    checkpoints_of,
    local_model,
    model_place,
    overlay,
    prompts_of,
    write_dataset,
)
from likeness.exports.files import ExportFolder
from likeness.exports.samples import Sample
from likeness.exports.settings import Output, Trainer, common, in_files, is_whole_rank, key, missing
from likeness.exports.targets import impossible_warning, original_modules
from likeness.klein.family import Layout
from likeness.yaml_text import yaml_text

TIMESTEPS = {"uniform": "linear", "sigmoid": "sigmoid", "shifted": "shift"}

AI_TOOLKIT = Trainer(
    title="ai-toolkit",
    max_references=4,
    references=("ai-toolkit encodes references anew at every step, so it is slower than with cached latents",),
    output=Output(rf"{OUTPUT}/{NAME}/{NAME}(_(?P<step>\d+))?\.safetensors"),
    settings=common("ai-toolkit")
    | {
        "rank": key("linear"),
        "alpha": missing("ai-toolkit trains this model with alpha equal to the rank", unless=is_whole_rank),
        "targets": key("network_kwargs"),
        "init": missing("ai-toolkit starts its down matrices in the kaiming way", implied="kaiming"),
        "steps": key("steps"),
        "batch_size": key("batch_size"),
        "gradient_accumulation": key("gradient_accumulation"),
        "learning_rate": key("lr"),
        "optimizer.name": key("optimizer"),
        "optimizer.weight_decay": key("weight_decay"),
        "optimizer.beta1": key("betas"),
        "optimizer.beta2": key("betas"),
        "optimizer.eps": key("eps"),
        "schedule.name": key("lr_scheduler"),
        "schedule.warmup_steps": key("lr_scheduler_params").but(
            lambda training: training.schedule.name == "cosine" and training.schedule.warmup_steps > 0,
            "ai-toolkit's cosine has no warm-up",
        ),
        "sigma.distribution": key("timestep_type").but(
            lambda training: training.sigma.distribution == "shifted",
            "ai-toolkit shifts uniform draws, not those of a sigmoid",
        ),
        "sigma.scale": missing("ai-toolkit draws its noise levels with a width of 1", implied=1.0),
        "sigma.bias": missing("ai-toolkit draws its noise levels around zero", implied=0.0),
        "sigma.shift": missing("ai-toolkit shifts by the number of image tokens only", implied="linear"),
        "masked_loss.kind": key("mask_path").but(
            lambda training: training.masked_loss.kind is not None,
            "ai-toolkit softens the masks' edges and divides by the mask's mean, so every photo counts alike",
        ),
        "masked_loss.inverted": in_files("inside and outside exchanged in the masks"),
        "masked_loss.unmasked_weight": key("mask_min_value"),
        "caption_dropout": key("caption_dropout_rate"),
        "max_grad_norm": key("max_grad_norm"),
        "buckets.resolution_px": key("resolution"),
        "resolutions_px": key("resolution"),
        "buckets.bucket_step_px": key("bucket_tolerance"),
        "buckets.max_aspect": missing("ai-toolkit keeps every photo's own aspect, however long"),
        "buckets.reference_resolution_px": key("match_target_res").but(
            lambda training: training.buckets.reference_resolution_px not in (None, training.buckets.resolution_px),
            "ai-toolkit brings references to the target's area or caps them at 1024² px, nothing else",
        ),
        "save_every": key("save_every"),
        "seed": key("training_seed"),
        "precision": key("dtype"),
        "gradient_checkpointing": key("gradient_checkpointing"),
    },
)


class AiToolkit:
    """Writes data/<role>/ and config/ai-toolkit.yaml; overrides are keys of its one process, such as `train.lr`."""

    TRAINER = AI_TOOLKIT

    def export(self, stage: ExportStage, samples: Sequence[Sample], folder: ExportFolder) -> list[str]:
        """Write the dataset and its config; returns warnings, one line each."""
        dataset = write_dataset(folder, samples, stage, AI_TOOLKIT, outside=0.0)
        layout, warnings = base_of(stage, AI_TOOLKIT)
        warnings += file_warning(stage, layout)
        network, targets = network_of(stage.training, layout)
        if stage.base_model.revision:
            warnings.append(f"base_model.revision = {stage.base_model.revision}: ai-toolkit takes the newest revision")
        process = {
            "type": "diffusion_trainer",
            "training_folder": OUTPUT,
            "device": "cuda:0",
            "training_seed": stage.training.seed,
            "network": network,
            "save": save_of(stage.training),
            "logging": {"log_every": 10, "use_wandb": False},
            "datasets": datasets_of(dataset, stage.training),
            "train": train_of(stage),
            "model": model_of(stage, layout, model_place(stage, folder)),
            "sample": sample_of(stage, dataset),
        }
        job = {
            "job": "extension",
            "config": {"name": NAME, "process": [overlay(process, stage.overrides)]},
            "meta": {"name": "[name]", "version": "1.0"},
        }
        folder.write_text("config/ai-toolkit.yaml", yaml_text(job))
        check_complete(folder, dataset)
        return warnings + targets


def network_of(training: TrainingSettings, layout: Layout) -> tuple[dict[str, Any], list[str]]:
    """The adapter; every module of the blocks is trained unless names are given."""
    inside, outside, impossible = original_modules(training.targets, layout)
    chosen = {"only_if_contains": inside} if outside else {}
    network = {"type": "lora", "linear": training.rank, "linear_alpha": training.rank, "network_kwargs": chosen}
    return network, impossible_warning(training.targets, impossible, AI_TOOLKIT.title)


def save_of(training: TrainingSettings) -> dict[str, Any]:
    return {
        "dtype": "float32" if training.precision == "float32" else "bf16",
        "save_every": training.save_every,
        "max_step_saves_to_keep": checkpoints_of(training),
        "save_format": "safetensors",
    }


def datasets_of(dataset: Dataset, training: TrainingSettings) -> list[dict[str, Any]]:
    """One dataset a group of repeats."""
    found = []
    for group in dataset.groups:
        entry: dict[str, Any] = {"folder_path": group.folder(dataset.learned)}
        if dataset.references:
            entry["control_path"] = [group.folder(role) for role in dataset.references]
        if dataset.masked:
            entry |= {"mask_path": group.folder("mask"), "mask_min_value": training.masked_loss.unmasked_weight}
        found.append(
            entry
            | {
                "caption_ext": "txt",
                "caption_dropout_rate": training.caption_dropout,
                "num_repeats": group.repeats,
                "cache_latents_to_disk": True,
                "resolution": [*training.all_resolutions_px],
                "bucket_tolerance": training.buckets.bucket_step_px,
            }
        )
    return found


def train_of(stage: ExportStage) -> dict[str, Any]:
    """Steps, optimizer, schedule and noise levels."""
    training, optimizer = stage.training, stage.training.optimizer
    warmup = training.schedule.warmup_steps
    constant = "constant_with_warmup" if warmup else "constant"
    is_cosine = training.schedule.name == "cosine"
    return {
        "steps": training.fixed_steps,
        "batch_size": training.batch_size,
        "gradient_accumulation": training.gradient_accumulation,
        "gradient_checkpointing": training.gradient_checkpointing,
        "train_unet": True,
        "train_text_encoder": False,
        "noise_scheduler": "flowmatch",
        "timestep_type": TIMESTEPS[training.sigma.distribution],
        "content_or_style": "balanced",
        "noise_offset": 0.0,
        "optimizer": optimizer.name,
        "optimizer_params": {
            "weight_decay": optimizer.weight_decay,
            "betas": [optimizer.beta1, optimizer.beta2],
            "eps": optimizer.eps,
        },
        "lr": training.learning_rate,
        "lr_scheduler": "cosine" if is_cosine else constant,
        "lr_scheduler_params": {"num_warmup_steps": warmup} if warmup and not is_cosine else {},
        "max_grad_norm": training.max_grad_norm,
        "ema_config": {"use_ema": False},
        "dtype": "float32" if training.precision == "float32" else "bf16",
        "disable_sampling": not stage.prompts,
    }


def file_warning(stage: ExportStage, layout: Layout) -> list[str]:
    """ai-toolkit reads the original code's single file and finds nothing in a folder without it."""
    local, name = local_model(stage), f"flux-2-klein-base-{layout.name.removeprefix('klein-')}.safetensors"
    if local is None or local.is_file() or (local / name).is_file():
        return []
    return [
        f"base_model {stage.base_model.source}: ai-toolkit reads {name} there, which is absent; put it into the folder"
    ]


def model_of(stage: ExportStage, layout: Layout, model: str) -> dict[str, Any]:
    """Which model is trained, as ai-toolkit finds it."""
    reference_px = stage.training.buckets.reference_resolution_px
    return {
        "name_or_path": model,
        "arch": f"flux2_{layout.name.replace('-', '_')}",
        "quantize": False,
        "quantize_te": False,
        "low_vram": False,
        "model_kwargs": {"match_target_res": reference_px == stage.training.buckets.resolution_px},
    }


def sample_of(stage: ExportStage, dataset: Dataset) -> dict[str, Any]:
    """Sample images while it trains: the subject's prompts, or the edit of the first pair."""
    side_px = stage.training.buckets.resolution_px
    samples: list[dict[str, Any]] = [{"prompt": text} for text in prompts_of(stage).values()]
    if dataset.references:
        sample, places, _ = next(dataset.rows())
        controls = {f"ctrl_img_{number}": places[role] for number, role in enumerate(dataset.references, start=1)}
        samples = [{"prompt": sample.caption, **controls}]
    return {
        "sampler": "flowmatch",
        "sample_every": stage.training.save_every,
        "width": side_px,
        "height": side_px,
        "guidance_scale": 4,
        "sample_steps": 20,
        "seed": stage.training.seed,
        "walk_seed": True,
        "neg": "",
        "samples": samples,
    }
