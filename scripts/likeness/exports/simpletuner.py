"""Render a phase for SimpleTuner: one folder a role with identical file names, data backends, and its config.

SimpleTuner joins a target with its references and mask by the same relative path, ending included, in other folders;
several references need `conditioning_multidataset_sampling: combined`, and a caption file with two lines counts as two
captions. Photos with different repeats go to different folders, as repeats belong to a dataset. Paths in the config are
relative to the export's folder: run `simpletuner train` inside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from likeness.config.exports import ExportStage
from likeness.config.training import TrainingSettings
from likeness.errors import UserError
from likeness.exports.files import ExportFolder, place_images, place_mask
from likeness.exports.samples import PHOTO, SOURCE, TARGET, Sample, roles_of
from likeness.exports.settings import Setting, in_files, key, missing
from likeness.klein.family import KLEIN_4B, Layout, known_layout, linear_shapes
from likeness.klein.targets import matched_names, target_regex

PIPELINE_REFERENCE_PX = 1024
TOKEN_PX = 16
OPTIMIZERS = {"adamw": "optimi-adamw", "adamw8bit": "bnb-adamw8bit"}
HUB_IDS = {
    "klein-4b": "black-forest-labs/FLUX.2-klein-base-4B",
    "klein-9b": "black-forest-labs/FLUX.2-klein-base-9B",
}


class SimpleTuner:
    """Writes data/<role>/, config/config.json, config/multidatabackend.json and config/prompts.json."""

    SETTINGS: Mapping[str, Setting] = {
        "rank": key("lora_rank"),
        "alpha": key("lora_alpha"),
        "targets": key("peft_lora_target_modules"),
        "init": key("lora_init_type"),
        "steps": key("max_train_steps"),
        "batch_size": key("train_batch_size"),
        "gradient_accumulation": key("gradient_accumulation_steps"),
        "learning_rate": key("learning_rate"),
        "optimizer.name": key("optimizer"),
        "optimizer.weight_decay": key("optimizer_config"),
        "optimizer.beta1": key("optimizer_beta1"),
        "optimizer.beta2": key("optimizer_beta2"),
        "optimizer.eps": key("optimizer_config"),
        "schedule.name": key("lr_scheduler"),
        "schedule.warmup_steps": key("lr_warmup_steps"),
        "sigma.distribution": key("flow_use_uniform_schedule", "flow_schedule_shift"),
        "sigma.scale": key("flow_sigmoid_scale"),
        "sigma.bias": missing("SimpleTuner draws its noise levels around zero", implied=0.0),
        "sigma.shift": key("flow_schedule_shift"),
        "masked_loss.kind": in_files("the dataset of masks"),
        "masked_loss.unmasked_weight": in_files("grey level of the masks outside"),
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
        "cpu_threads": missing("SimpleTuner takes its threads from the environment (OMP_NUM_THREADS)", implied=1),
    }

    def export(self, stage: ExportStage, samples: Sequence[Sample], folder: ExportFolder) -> list[str]:
        """Write the dataset and its config; returns warnings, one line each."""
        roles = roles_of(samples)
        masked = stage.training.masked_loss.kind is not None
        backends: list[dict[str, Any]] = []
        for repeats in sorted({sample.repeats for sample in samples}):
            group = [sample for sample in samples if sample.repeats == repeats]
            suffix = "" if repeats == 1 else f"-x{repeats}"
            write_group(folder, group, suffix, stage.training if masked else None)
            backends += backends_of(roles, suffix, repeats, stage.training)
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
        config, warnings = config_of(stage, len(roles) > 1, masked)
        folder.write_json("config/multidatabackend.json", backends)
        folder.write_json("config/config.json", config)
        folder.write_json("config/prompts.json", prompts_of(stage))
        check_complete(folder, backends, samples)
        return warnings


def write_group(folder: ExportFolder, samples: Sequence[Sample], suffix: str, masked: TrainingSettings | None) -> None:
    """Write images, masks and captions of the samples that share their repeats."""
    for sample in samples:
        places = {f"data/{role}{suffix}/{sample.name}": image for role, image in sample.images.items()}
        place_images(folder, places, ".png" if masked else None)
        learned = TARGET if TARGET in sample.images else PHOTO
        folder.write_text(f"data/{learned}{suffix}/{sample.name}.txt", sample.caption)
        if masked:
            mask = f"data/mask-{masked.masked_loss.kind}{suffix}/{sample.name}.png"
            place_mask(folder, sample, mask, masked.masked_loss.unmasked_weight)


def backends_of(roles: Sequence[str], suffix: str, repeats: int, training: TrainingSettings) -> list[dict[str, Any]]:
    """The data backends of one group: what is learned first, then references and mask that refer to it."""
    learned = TARGET if TARGET in roles else PHOTO
    conditioning = [role for role in roles if role != learned]
    mask = [f"mask-{training.masked_loss.kind}"] if training.masked_loss.kind else []
    linked = {"conditioning_data": [f"{name}{suffix}" for name in conditioning + mask]}
    first = dataset(f"{learned}{suffix}", "image", training.buckets.resolution_px) | {
        "caption_strategy": "textfile",
        "metadata_backend": "discovery",
        "repeats": repeats - 1,
        **(linked if conditioning or mask else {}),
    }
    found = [first]
    for role in conditioning:
        found.append(reference_dataset(role, suffix, learned, training))
    for name in mask:
        entry = dataset(f"{name}{suffix}", "conditioning", training.buckets.resolution_px)
        del entry["cache_dir_vae"]  # masks are not encoded
        found.append(entry | {"conditioning_type": "mask", "source_dataset_id": f"{learned}{suffix}"})
    return found


def dataset(name: str, dataset_type: str, resolution_px: int) -> dict[str, Any]:
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
    entry = dataset(f"{role}{suffix}", "conditioning", resolution_px)
    if strict:
        return entry | {"conditioning_type": "reference_strict", "source_dataset_id": f"{learned}{suffix}"}
    return entry | {"conditioning_type": "reference_loose"}


def config_of(stage: ExportStage, has_references: bool, masked: bool) -> tuple[dict[str, Any], list[str]]:
    """SimpleTuner's config.json and the warnings that go with it; overrides are laid over it as they are."""
    training = stage.training
    model, layout, warnings = model_keys(stage)
    config = model | adapter_keys(training, layout) | optimizer_keys(training) | sigma_keys(training)
    config |= {
        "train_batch_size": training.batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation,
        "gradient_checkpointing": training.gradient_checkpointing,
        "max_train_steps": training.steps,
        "num_train_epochs": 0,
        "caption_dropout_probability": training.caption_dropout,
        "masked_loss_probability": 1.0 if masked else 0.0,
        "use_ema": False,
        "seed": training.seed,
        "data_backend_config": "config/multidatabackend.json",
        "resolution": training.buckets.resolution_px,
        "resolution_type": "pixel_area",
        "checkpoint_step_interval": training.save_every,
        "checkpoints_total_limit": math.ceil(training.steps / training.save_every) + 1,
        "resume_from_checkpoint": "latest",
        "output_dir": "output",
        "report_to": "tensorboard",
        "tracker_project_name": "likeness",
        "tracker_run_name": stage.trigger,
    }
    if has_references:
        config["conditioning_multidataset_sampling"] = "combined"
    config |= validation_keys(stage, has_references)
    if training.schedule.name == "cosine":
        warnings.append(
            "training.schedule.name = cosine: SimpleTuner's cosine starts anew after every warm-up length, "
            "so the rate falls in a straight line to zero instead (polynomial of power 1)"
        )
    if masked:
        warnings += mask_warnings(training)
    return config | stage.overrides, warnings


def model_keys(stage: ExportStage) -> tuple[dict[str, Any], Layout, list[str]]:
    """Which model is trained and in which number type; a base that SimpleTuner has no flavour for is warned of."""
    source = stage.base_model.source
    layout = known_layout(source)
    warnings = []
    if layout is None:
        layout = KLEIN_4B
        warnings.append(
            f"base_model {source}: SimpleTuner knows klein-4b and klein-9b only; the config says klein-4b, so set "
            "model_flavour and pretrained_model_name_or_path in overrides before training"
        )
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
    if source != HUB_IDS[layout.name]:
        keys["pretrained_model_name_or_path"] = source
    if stage.base_model.revision:
        keys["revision"] = stage.base_model.revision
    return keys, layout, warnings


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


def module_endings(targets: str, layout: Layout) -> list[str]:
    """The shortest list that PEFT reads as exactly these modules: an ending where it hits no other module, else names.

    `attn.to_out` is a list of modules in double blocks and a layer in single ones, so it is never an ending.
    """
    chosen = matched_names(target_regex(targets, layout), layout)
    others = [name for name in linear_shapes(layout) if name not in set(chosen)]
    others += [f"transformer_blocks.{index}.attn.to_out" for index in range(layout.num_double)]
    found: dict[str, None] = {}
    for name in chosen:
        parts = name.split(".")
        ending = ".".join(parts[2:]) if "blocks" in parts[0] else name
        hits_others = any(other == ending or other.endswith(f".{ending}") for other in others)
        found[name if hits_others else ending] = None
    return list(found)


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
    sigma = training.sigma
    shift = 1.0
    if sigma.distribution == "shifted":
        tokens = (training.buckets.resolution_px / TOKEN_PX) ** 2
        linear = math.exp(0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256))
        shift = round(linear, 6) if sigma.shift == "linear" else sigma.shift
    return {
        "flow_use_uniform_schedule": sigma.distribution == "uniform",
        "flow_sigmoid_scale": sigma.scale,
        "flow_schedule_shift": shift,
        "flow_schedule_auto_shift": False,
    }


def validation_keys(stage: ExportStage, has_references: bool) -> dict[str, Any]:
    """Sample images while it trains: the first prompt, or edits of the dataset's own sources."""
    side_px = stage.training.buckets.resolution_px
    return {
        "validation_step_interval": stage.training.save_every,
        "validation_prompt": next(iter(prompts_of(stage).values()), stage.trigger),
        "user_prompt_library": "config/prompts.json",
        "validation_using_datasets": has_references,
        "validation_guidance": 4.0,
        "validation_num_inference_steps": 20,
        "validation_resolution": f"{side_px}x{side_px}",
        "validation_seed": stage.training.seed,
    }


def prompts_of(stage: ExportStage) -> dict[str, str]:
    """The subject's prompts by number, with trigger and class in their places."""
    texts = [text.replace("{trigger}", stage.trigger).replace("{class}", stage.class_word) for text in stage.prompts]
    return {f"prompt-{number:02d}": text for number, text in enumerate(texts, start=1)}


def mask_warnings(training: TrainingSettings) -> list[str]:
    """What SimpleTuner does otherwise with masks."""
    weight = training.masked_loss.unmasked_weight
    warnings = [
        "training.masked_loss.kind: SimpleTuner multiplies the loss by the mask and does not divide by its area, "
        "so photos with a small mask count less than here"
    ]
    level = round(255 * weight)
    if abs(level / 255 - weight) > 1e-9:
        warnings.append(
            f"training.masked_loss.unmasked_weight = {weight}: masks have 256 levels, so it becomes {level / 255:.4f}"
        )
    return warnings


def check_complete(folder: ExportFolder, backends: Sequence[Mapping[str, Any]], samples: Sequence[Sample]) -> None:
    """Check that each dataset has the same files as the one it belongs to, and that every sample and caption is there.

    SimpleTuner itself only logs a missing file. Raises UserError.
    """
    names: dict[str, set[str]] = {}
    for relative in folder.written:
        parent, _, name = relative.rpartition("/")
        if parent.startswith("data/") and not name.endswith(".txt"):
            names.setdefault(parent, set()).add(name)
    exported = 0
    for backend in backends:
        for other in backend.get("conditioning_data", []):
            if names[f"data/{other}"] != names[backend["instance_data_dir"]]:
                raise UserError(
                    f"{folder.root}: the datasets {backend['id']} and {other} hold different files. Run again."
                )
        if backend["dataset_type"] == "image":
            found = names[backend["instance_data_dir"]]
            exported += len(found)
            captions = {f"{backend['instance_data_dir']}/{name.rpartition('.')[0]}.txt" for name in found}
            if not captions <= set(folder.written):
                raise UserError(f"{folder.root}: captions are missing in {backend['id']}. Run again.")
    if exported != len(samples):
        raise UserError(f"{folder.root}: {exported} of {len(samples)} samples were exported. Run again.")
