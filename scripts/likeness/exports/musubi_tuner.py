"""Render a phase for musubi-tuner: photos as folders, pairs as a JSONL list, its training TOML and dataset TOML.

In a folder of controls `a_1` could belong to `a` or to `a_1`, so pairs are listed by path. It reads single model files;
alpha is 1 unless it is given. Paths are relative to the export's folder: run flux_2_cache_latents.py,
flux_2_cache_text_encoder_outputs.py and flux_2_train_network.py of musubi-tuner inside it, as config/train.sh does.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import tomli_w

from likeness.config.exports import ExportStage
from likeness.config.training import TrainingSettings
from likeness.exports.dataset import (
    NAME,
    OUTPUT,
    PIPELINE_REFERENCE_PX,
    Dataset,
    base_of,
    check_complete,
    overlay,
    single_files,
    write_dataset,
)
from likeness.exports.files import ExportFolder
from likeness.exports.samples import Sample
from likeness.exports.script import write_script
from likeness.exports.settings import Output, Trainer, common, key, missing
from likeness.exports.targets import impossible_warning, original_modules, pattern_of
from likeness.klein.family import Layout

OPTIMIZERS = {"adamw": "AdamW", "adamw8bit": "adamw8bit", "prodigy": "prodigyopt.Prodigy"}
FILES = {
    "dit": "flux-2-klein-base-{size}.safetensors",
    "vae": "ae.safetensors",
    "text_encoder": "qwen_3_{text}.safetensors",
}

MUSUBI_TUNER = Trainer(
    title="musubi-tuner",
    max_references=4,
    output=Output(rf"{OUTPUT}/{NAME}(-step(?P<step>\d+))?\.safetensors"),
    settings=common("musubi-tuner")
    | {
        "rank": key("network_dim"),
        "alpha": key("network_alpha"),
        "targets": key("network_args"),
        "init": missing("musubi-tuner starts its down matrices in the kaiming way", implied="kaiming"),
        "steps": key("max_train_steps"),
        "batch_size": key("batch_size"),
        "gradient_accumulation": key("gradient_accumulation_steps"),
        "learning_rate": key("learning_rate"),
        "optimizer.name": key("optimizer_type"),
        "optimizer.weight_decay": key("optimizer_args"),
        "optimizer.beta1": key("optimizer_args"),
        "optimizer.beta2": key("optimizer_args"),
        "optimizer.eps": key("optimizer_args"),
        "schedule.name": key("lr_scheduler"),
        "schedule.warmup_steps": key("lr_warmup_steps"),
        "sigma.distribution": key("timestep_sampling"),
        "sigma.scale": key("sigmoid_scale"),
        "sigma.bias": missing("musubi-tuner draws its noise levels around zero", implied=0.0),
        "sigma.shift": key("timestep_sampling", "discrete_flow_shift"),
        "masked_loss.kind": missing("musubi-tuner takes no masks; it learns the whole picture", implied=None),
        "masked_loss.unmasked_weight": missing("musubi-tuner takes no masks", implied=0.1),
        "masked_loss.inverted": missing("musubi-tuner takes no masks", implied=False),
        "caption_dropout": missing("musubi-tuner cannot drop captions", implied=0.0),
        "max_grad_norm": key("max_grad_norm"),
        "buckets.resolution_px": key("resolution"),
        "buckets.bucket_step_px": missing("musubi-tuner aligns the buckets of this model to 16 px", implied=16),
        "buckets.max_aspect": missing("musubi-tuner keeps every photo's own aspect, however long"),
        "buckets.reference_resolution_px": key("control_resolution"),
        "save_every": key("save_every_n_steps"),
        "seed": key("seed"),
        "precision": key("mixed_precision"),
        "gradient_checkpointing": key("gradient_checkpointing"),
    },
)


class MusubiTuner:
    """Writes data/<role>/, config/musubi-tuner.toml, config/dataset.toml, config/pairs*.jsonl and config/train.sh."""

    TRAINER = MUSUBI_TUNER

    def export(self, stage: ExportStage, samples: Sequence[Sample], folder: ExportFolder) -> list[str]:
        """Write the dataset and its config; returns warnings, one line each."""
        dataset = write_dataset(folder, samples, stage, MUSUBI_TUNER)
        layout, warnings = base_of(stage, MUSUBI_TUNER)
        files, lacking = single_files(stage, MUSUBI_TUNER, layout, FILES)
        inside, outside, impossible = original_modules(stage.training.targets, layout)
        config = files | config_of(stage.training, layout)
        if outside:
            config["network_args"] = [r"exclude_patterns=[r'.*']", f"include_patterns=[r'{pattern_of(inside)}']"]
        config = overlay(config, stage.overrides)
        folder.write_text("config/musubi-tuner.toml", tomli_w.dumps(config))
        if dataset.references:
            write_lists(folder, dataset)
        folder.write_text("config/dataset.toml", tomli_w.dumps(dataset_of(dataset, stage.training)))
        write_script(folder, "MUSUBI_TUNER", MUSUBI_TUNER.title, commands_of(config))
        check_complete(folder, dataset)
        return warnings + lacking + impossible_warning(stage.training.targets, impossible, MUSUBI_TUNER.title)


def config_of(training: TrainingSettings, layout: Layout) -> dict[str, Any]:
    """The training TOML; its keys are the flags of the program."""
    optimizer, full = training.optimizer, training.precision == "float32"
    warmup = training.schedule.warmup_steps
    constant = "constant_with_warmup" if warmup else "constant"
    return {
        "model_version": layout.name.replace("klein-", "klein-base-"),
        "dataset_config": "config/dataset.toml",
        "sdpa": True,
        "mixed_precision": "no" if full else "bf16",
        "gradient_checkpointing": training.gradient_checkpointing,
        **sigma_keys(training),
        "weighting_scheme": "none",
        "network_module": "networks.lora_flux_2",
        "network_dim": training.rank,
        "network_alpha": training.resolved_alpha,
        "optimizer_type": OPTIMIZERS[optimizer.name],
        "optimizer_args": [
            f"weight_decay={optimizer.weight_decay!r}",
            f"betas=({optimizer.beta1!r},{optimizer.beta2!r})",
            f"eps={optimizer.eps!r}",
        ],
        "learning_rate": training.learning_rate,
        "lr_scheduler": "cosine" if training.schedule.name == "cosine" else constant,
        "lr_warmup_steps": warmup,
        "max_train_steps": training.fixed_steps,
        "gradient_accumulation_steps": training.gradient_accumulation,
        "max_grad_norm": training.max_grad_norm,
        "max_data_loader_n_workers": 2,
        "persistent_data_loader_workers": True,
        "seed": training.seed,
        "output_dir": OUTPUT,
        "output_name": NAME,
        "save_every_n_steps": training.save_every,
        "save_state": True,
        "log_with": "tensorboard",
        "logging_dir": "logs",
    }


def sigma_keys(training: TrainingSettings) -> dict[str, Any]:
    """Noise levels: the linear shift has a name of its own, a number goes with `shift`."""
    sigma, scale = training.sigma, {"sigmoid_scale": training.sigma.scale}
    if sigma.distribution != "shifted":
        return {"timestep_sampling": sigma.distribution, **scale}
    if sigma.shift == "linear":
        return {"timestep_sampling": "flux2_shift", **scale}
    return {"timestep_sampling": "shift", "discrete_flow_shift": sigma.shift, **scale}


def write_lists(folder: ExportFolder, dataset: Dataset) -> None:
    """One JSONL list of pairs a group of repeats."""
    for group in dataset.groups:
        lines = []
        for sample in group.samples:
            places = group.places[sample.name]
            row = {"image_path": places[dataset.learned], "caption": sample.caption}
            row |= {f"control_path_{number}": places[role] for number, role in enumerate(dataset.references)}
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        folder.write_text(f"config/pairs{group.suffix}.jsonl", "".join(lines))


def dataset_of(dataset: Dataset, training: TrainingSettings) -> dict[str, Any]:
    """The dataset TOML: one dataset a group of repeats, each with a cache of its own."""
    side_px = training.buckets.resolution_px
    reference_px = training.buckets.reference_resolution_px or PIPELINE_REFERENCE_PX
    found = []
    for group in dataset.groups:
        entry: dict[str, Any] = {"image_directory": group.folder(dataset.learned)}
        if dataset.references:
            entry = {
                "image_jsonl_file": f"config/pairs{group.suffix}.jsonl",
                "no_resize_control": True,
                "control_resolution": [reference_px, reference_px],
            }
        found.append(
            entry | {"cache_directory": f"cache/{dataset.learned}{group.suffix}", "num_repeats": group.repeats}
        )
    general = {
        "resolution": [side_px, side_px],
        "caption_extension": ".txt",
        "batch_size": training.batch_size,
        "enable_bucket": True,
        "bucket_no_upscale": False,
    }
    return {"general": general, "datasets": found}


def commands_of(config: dict[str, Any]) -> list[list[str]]:
    """Cache latents, cache text embeddings, train."""
    dataset = ["--dataset_config", "config/dataset.toml"]
    version = ["--model_version", str(config["model_version"])]
    source = "$MUSUBI_TUNER/src/musubi_tuner"
    return [
        ["python", f"{source}/flux_2_cache_latents.py", *dataset, "--vae", str(config["vae"]), *version],
        [
            "python",
            f"{source}/flux_2_cache_text_encoder_outputs.py",
            *dataset,
            "--text_encoder",
            str(config["text_encoder"]),
            *version,
        ],
        ["accelerate", "launch", f"{source}/flux_2_train_network.py", "--config_file", "config/musubi-tuner.toml"],
    ]
