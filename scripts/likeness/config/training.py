"""Settings of the trainer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from likeness.config.base import ModelSource, Settings
from likeness.config.losses import LossesSettings
from likeness.config.masks import MaskKind


class OptimizerSettings(Settings):
    """The optimizer; all come from maintained packages."""

    name: Literal["adamw", "adamw8bit", "prodigy"] = Field(
        default="adamw", description="adamw (torch), adamw8bit (bitsandbytes) or prodigy (prodigyopt; learning rate 1)."
    )
    weight_decay: float = Field(default=1e-4, ge=0, le=1, description="Decoupled weight decay.")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="Decay of the gradient's mean.")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="Decay of the gradient's square.")
    eps: float = Field(default=1e-8, gt=0, description="Added to the denominator.")


class ScheduleSettings(Settings):
    """How the learning rate moves."""

    name: Literal["constant", "cosine"] = Field(
        default="constant",
        description="constant, or cosine to zero; both after the warm-up. More `steps` continue a constant one, and train a cosine anew.",
    )
    warmup_steps: int = Field(default=0, ge=0, description="Steps of linear warm-up.")


class SigmaSettings(Settings):
    """From which noise levels the trainer draws; sigma 0 is the image, 1 is noise."""

    distribution: Literal["uniform", "sigmoid", "shifted"] = Field(
        default="sigmoid",
        description="uniform; sigmoid of a normal draw; shifted: that, moved towards noise by `shift`.",
    )
    scale: float = Field(default=1.0, gt=0, le=5, description="Width of the normal draw of sigmoid and shifted.")
    bias: float = Field(default=0.0, ge=-5, le=5, description="Mean of the normal draw of sigmoid and shifted.")
    shift: float | Literal["linear"] = Field(
        default="linear",
        description="shifted: the factor, or linear: by the number of image tokens as the model's scheduler does.",
    )


class MaskedLossSettings(Settings):
    """Which part of the picture is learned."""

    kind: MaskKind | None = Field(
        default=None, description="Which mask weighs the loss; null learns the whole picture."
    )
    unmasked_weight: float = Field(default=0.1, ge=0, le=1, description="Weight of what lies outside the mask.")


class BucketSettings(Settings):
    """Sizes to which samples are brought; part of the training settings, and of what encoding depends on."""

    resolution_px: int = Field(
        default=1024, ge=16, le=4096, description="Side of the square whose area every bucket keeps, in px."
    )
    bucket_step_px: int = Field(
        default=64, ge=1, description="Bucket sides are multiples of this, in px (and of what the model needs)."
    )
    max_aspect: float = Field(default=2.0, ge=1, le=8, description="Longest bucket: longer side over shorter.")
    reference_resolution_px: int | None = Field(
        default=None,
        ge=16,
        le=4096,
        description="Side of the square whose area references are capped to, in px; null: the pipeline's own cap.",
    )


class TrainingSettings(Settings):
    """How one variant is trained."""

    rank: int = Field(default=32, ge=1, le=1024, description="Rank of the adapter.")
    alpha: float | None = Field(
        default=None, gt=0, description="Scale of the adapter times its rank; null means equal to the rank."
    )
    targets: str = Field(
        default="all_blocks", description="A preset of target modules, or a regular expression over module names."
    )
    init: Literal["gaussian", "kaiming"] = Field(
        default="kaiming", description="How the adapter's down matrices start; up matrices start at zero."
    )
    steps: int = Field(default=1000, ge=1, description="Optimizer steps a phase.")
    batch_size: int = Field(default=1, ge=1, le=256, description="Samples of one micro-batch; all of one bucket.")
    gradient_accumulation: int = Field(default=1, ge=1, le=256, description="Micro-batches of one optimizer step.")
    learning_rate: float = Field(default=1e-4, gt=0, le=1, description="Peak learning rate.")
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    sigma: SigmaSettings = SigmaSettings()
    masked_loss: MaskedLossSettings = MaskedLossSettings()
    losses: LossesSettings = LossesSettings()
    caption_dropout: float = Field(
        default=0.05, ge=0, lt=1, description="Share of samples trained with the empty caption."
    )
    max_grad_norm: float = Field(default=1.0, gt=0, description="Gradients are scaled down to this norm.")
    buckets: BucketSettings = BucketSettings()
    save_every: int = Field(default=250, ge=1, description="A checkpoint every so many steps, and at the last.")
    seed: int = Field(default=42, ge=0, description="From which all noise, order and dropout follow.")
    precision: Literal["float32", "bfloat16"] = Field(
        default="bfloat16", description="Type of the frozen base; the adapter stays float32."
    )
    gradient_checkpointing: bool = Field(default=False, description="Recompute activations: slower, for small GPUs.")
    allow_distilled: bool = Field(
        default=False, description="Train on a distilled checkpoint all the same; it collapses early."
    )
    cpu_threads: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Threads of numeric libraries on the CPU; a setting, so that results do not depend on the machine.",
    )

    @property
    def resolved_alpha(self) -> float:
        """Alpha, or the rank where none is given."""
        return float(self.rank) if self.alpha is None else self.alpha

    @property
    def saved_steps(self) -> list[int]:
        """The steps of a phase that have a checkpoint: every `save_every`, and the last."""
        return sorted({*range(self.save_every, self.steps + 1, self.save_every), self.steps})

    @model_validator(mode="after")
    def check_warmup(self) -> TrainingSettings:
        if self.schedule.name == "cosine" and self.schedule.warmup_steps >= self.steps:
            raise ValueError(f"schedule.warmup_steps ({self.schedule.warmup_steps}) must be below steps ({self.steps})")
        return self


class Variant(Settings):
    """One way to make a LoRA: trained with changed settings, here or by another trainer, or read from files."""

    lora: str | None = Field(
        default=None, description="Glob of finished LoRA files that compete in the same table; nothing is trained."
    )
    trainer: str | None = Field(
        default=None, description="Another trainer that trains this variant, by its command in `trainers`."
    )
    training: dict[str, object] = Field(
        default_factory=dict, description="Keys of `training` that this variant changes."
    )
    phases: tuple[str, ...] = Field(default=(), description="Which phases it runs; none means all.")

    @model_validator(mode="after")
    def check_one_kind(self) -> Variant:
        if self.lora and (self.training or self.phases or self.trainer):
            raise ValueError(
                "a variant is either `lora:` files or trained (`training:`, `trainer:`, `phases:`), not both"
            )
        return self


class EncodeStage(Settings):
    """The slice that encode_samples reads: what the caches depend on."""

    base_model: ModelSource
    buckets: tuple[BucketSettings, ...]
    mask_kind: MaskKind | None
    unmasked_weights: tuple[float, ...]
    offline: bool = True
    cpu_threads: int = 1


class TrainStage(Settings):
    """The slice that train_lora reads, for one variant and phase."""

    training: TrainingSettings
    base_model: ModelSource
    init: str
    offline: bool = True
