"""Settings of the trainer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from likeness.config.adapter import AdapterSettings
from likeness.config.base import KeysOf, ModelSource, Settings
from likeness.config.losses import LossesSettings
from likeness.config.masks import MaskKind

OptimizerName = Literal["adamw", "adamw8bit", "adamw_kahan", "adafactor", "prodigy", "schedulefree"]


ONLY_WATCHED = ("tensorboard", "samples")
"""Settings of what is shown of a training while it runs."""

ONLY_SPEED = ("gradient_checkpointing", "checkpoint_every", "processes", "offload", "compile", "attention")
"""Settings that change speed and memory and no more of a result than another machine would: the order of sums."""

AUTO_FLOOR = 500
"""Fewest steps of `steps: auto`."""
HIGHEST_LOKR_RANK = 512
"""Rank as a LoRA up to which a LoKr is read exactly."""
LOWEST_PRODIGY_RATE = 0.1
"""Learning rate below which Prodigy's estimate of the distance stays where it starts, so that nothing is learned."""


class OptimizerSettings(Settings):
    """The optimizer; all come from maintained packages."""

    name: OptimizerName = Field(
        default="adamw",
        description="adamw (torch); adamw8bit (bitsandbytes); adamw_kahan (torch-optimi: Kahan summation, for an adapter in "
        "bfloat16); adafactor (transformers, with a given rate and none of its own scaling); prodigy (prodigyopt; learning "
        "rate 1); schedulefree (AdamW that averages instead of decaying; constant schedule).",
    )
    weight_decay: float = Field(default=1e-4, ge=0, le=1, description="Decoupled weight decay.")
    beta1: float = Field(
        default=0.9,
        ge=0,
        lt=1,
        description="Decay of the gradient's mean; adafactor keeps none; above 0 for schedulefree.",
    )
    beta2: float = Field(
        default=0.999, ge=0, lt=1, description="Decay of the gradient's square; adafactor has its own."
    )
    eps: float = Field(default=1e-8, gt=0, description="Added to the denominator; adafactor has its own.")

    @model_validator(mode="after")
    def check_average(self) -> OptimizerSettings:
        if self.name == "schedulefree" and self.beta1 == 0:
            raise ValueError(
                "beta1 must be above 0 with name schedulefree, which finds its average by it; 0.9 is usual"
            )
        return self


class ScheduleSettings(Settings):
    """How the learning rate moves."""

    name: Literal["constant", "cosine", "polynomial", "two_stage"] = Field(
        default="constant",
        description="constant; cosine to zero; polynomial to `end`; two_stage: `end` from the share `stage_at` on; all after "
        "the warm-up. A second stage with a fresh optimizer is a phase of its own. More `steps` continue a constant one only.",
    )
    warmup_steps: int = Field(default=0, ge=0, description="Steps of linear warm-up.")
    power: float = Field(default=1.0, gt=0, le=10, description="polynomial: exponent; 1 falls in a straight line.")
    end: float = Field(
        default=0.0, ge=0, le=1, description="polynomial and two_stage: the last learning rate, as a share of the peak."
    )
    stage_at: float = Field(
        default=0.5, gt=0, lt=1, description="two_stage: share of the steps before the second stage."
    )


class EmaSettings(Settings):
    """A running average of the adapter, saved beside the raw weights at every checkpoint."""

    decay: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Largest decay of the average, reached by the ramp (1 + n) / (10 + n) after n steps; 0: no average. "
        "0.99 averages about a hundred steps.",
    )
    evaluate: Literal["ema", "raw"] = Field(
        default="ema", description="Which weights are evaluated and published; the others lie beside them."
    )


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
        default=None,
        description="Which mask weighs the loss; null learns the whole picture. A subject has one kind; its variants and phases "
        "take that or null.",
    )
    unmasked_weight: float = Field(default=0.1, ge=0, le=1, description="Weight of what lies outside the mask.")
    inverted: bool = Field(
        default=False,
        description="Exchanges inside and outside of the mask: for a LoRA of the background, which surgery can subtract.",
    )


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
    diptych: bool = Field(
        default=False,
        description="Edit: source and target side by side as one picture, without references, captioned and drawn as ICEdit "
        "does; needs losses.velocity.region: right_half. Other references are left out.",
    )


class SampleSettings(Settings):
    """Pictures drawn at every checkpoint while training goes on, for a person to look at; evaluation draws its own."""

    prompts: tuple[str, ...] = Field(
        min_length=1, max_length=16, description="Prompts, as they are, such as `j4ne in a garden`."
    )
    steps: int = Field(default=20, ge=1, le=200, description="Sampling steps of each picture.")
    guidance: float = Field(default=4.0, ge=1, le=20, description="Strength of guidance; off for a distilled base.")
    seed: int = Field(
        default=0, ge=0, description="From which the starting noise follows, the same at every checkpoint."
    )


class TargetsFrom(Settings):
    """Targets from an ablation: the blocks that matter most, found before the training starts."""

    ablation: str | None = Field(default=None, description="Entry of the subject's `ablation`; or else a `table`.")
    table: str | None = Field(default=None, description="An ablation's Parquet table, such as another subject's.")
    metric: str = Field(default="image_change", description="The metric that counts, as the table names it.")
    most: int = Field(default=8, ge=1, le=100, description="At most so many blocks.")

    @model_validator(mode="after")
    def check_one_source(self) -> TargetsFrom:
        if (self.ablation is None) == (self.table is None):
            raise ValueError("targets_from reads one table: give either ablation or table")
        return self


Steps = Annotated[int, Field(ge=1)] | Literal["auto"]


class TrainingSettings(Settings):
    """How one variant is trained."""

    rank: int = Field(default=32, ge=1, le=1024, description="Rank of the adapter.")
    alpha: float | None = Field(
        default=None, gt=0, description="Scale of the adapter times its rank; null means equal to the rank."
    )
    targets: str = Field(
        default="all_blocks", description="A preset of target modules, or a regular expression over module names."
    )
    targets_from: TargetsFrom | None = Field(
        default=None,
        description="Restricts the preset of `targets` to the blocks that matter most by an ablation's table.",
    )
    adapter: AdapterSettings = AdapterSettings()
    init: Literal["gaussian", "kaiming"] = Field(
        default="kaiming", description="How the adapter's down matrices start; up matrices start at zero."
    )
    steps: Steps = Field(
        default=1000,
        description="Optimizer steps a phase, or auto: max(500, 30 × samples), from rank 64 on max(500, 20 × samples).",
    )
    batch_size: int = Field(default=1, ge=1, le=256, description="Samples of one micro-batch; all of one bucket.")
    gradient_accumulation: int = Field(default=1, ge=1, le=256, description="Micro-batches of one optimizer step.")
    learning_rate: float = Field(default=1e-4, gt=0, le=1, description="Peak learning rate; 1.0 for prodigy.")
    optimizer: OptimizerSettings = OptimizerSettings()
    adapter_precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="Type of the adapter while it is trained; bfloat16 is for adamw_kahan."
    )
    schedule: ScheduleSettings = ScheduleSettings()
    ema: EmaSettings = EmaSettings()
    sigma: SigmaSettings = SigmaSettings()
    masked_loss: MaskedLossSettings = MaskedLossSettings()
    losses: LossesSettings = LossesSettings()
    caption_dropout: float = Field(
        default=0.05, ge=0, lt=1, description="Share of samples trained with the empty caption."
    )
    noise_offset: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Adds so many times one normal draw a channel to the noise, for dark and bright.",
    )
    max_grad_norm: float = Field(default=1.0, gt=0, description="Gradients are scaled down to this norm.")
    buckets: BucketSettings = BucketSettings()
    resolutions_px: tuple[Annotated[int, Field(ge=16, le=4096)], ...] = Field(
        default=(),
        description="Further resolutions beside buckets.resolution_px, in px: a micro-batch is shown at one of all, drawn alike "
        "often. References keep their own size; evaluation draws at buckets.resolution_px.",
    )
    flip: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of samples shown mirrored left to right, with masks and landmarks. Not for faces: none is symmetric.",
    )
    held_out_sigmas: int = Field(
        default=0,
        ge=0,
        le=100,
        description="Noise levels at which the loss of the held-out samples is measured at every checkpoint; 0: not at all. "
        "8 tell enough; a changed held-out photo then starts encoding and training jobs too, which train nothing.",
    )
    samples: SampleSettings | None = Field(
        default=None, description="Pictures drawn at every checkpoint while training goes on; null draws none."
    )
    tensorboard: bool = Field(
        default=True, description="Write TensorBoard's files beside the checkpoints: losses, rates, times."
    )
    save_every: int = Field(default=250, ge=1, description="A checkpoint every so many steps, and at the last.")
    seed: int = Field(default=42, ge=0, description="From which all noise, order and dropout follow.")
    precision: Literal["float32", "bfloat16"] = Field(
        default="bfloat16", description="Type in which the base is computed; the adapter stays float32."
    )
    base_precision: Literal["full", "int8", "fp8", "fp8_matmul"] = Field(
        default="full",
        description="How the blocks' frozen matrices are stored: full: in `precision`; int8 and fp8: 8 bits with a scale a row, "
        "half the memory, computed in `precision`; fp8_matmul: also multiplied in fp8, faster on GPUs from Ada and Hopper on "
        "with `compile`. One batch is compared with full before training, and what corrupts gradients is refused.",
    )
    offload: tuple[Literal["base", "vae"], ...] = Field(
        default=(),
        description="What waits in main memory and is copied to the GPU when it is used: base (the blocks' matrices: slow, for "
        "the smallest GPUs), vae (of the identity loss). It changes speed only.",
    )
    compile: bool = Field(
        default=False,
        description="Compile the blocks: a minute or more at the start and for every new bucket, then a faster step. It changes "
        "speed only.",
    )
    attention: Literal["native", "flash", "efficient", "math"] = Field(
        default="native",
        description="Kernel of the attention: native lets torch choose, the others force one, and training stops where it "
        "is absent. It changes speed only.",
    )
    gradient_checkpointing: bool = Field(default=False, description="Recompute activations: slower, for small GPUs.")
    checkpoint_every: int = Field(
        default=1, ge=1, le=100, description="gradient_checkpointing: only every so many-th block, where memory allows."
    )
    allow_distilled: bool = Field(
        default=False, description="Train on a distilled checkpoint all the same; it collapses early."
    )
    cpu_threads: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Threads of numeric libraries on the CPU; a setting, so that results do not depend on the machine.",
    )

    processes: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Processes of one machine, each on its own GPU, that share the micro-batches of a step; at most "
        "gradient_accumulation. It changes speed only.",
    )

    @property
    def prompts(self) -> tuple[str, ...]:
        """Prompts that are encoded beside the captions: those of the losses, and those that are drawn."""
        return (*self.losses.prompts, *(self.samples.prompts if self.samples else ()))

    @property
    def resolved_alpha(self) -> float:
        """Alpha, or the rank where none is given."""
        return float(self.rank) if self.alpha is None else self.alpha

    @property
    def all_resolutions_px(self) -> tuple[int, ...]:
        """The main resolution, then the further ones."""
        return (self.buckets.resolution_px, *self.resolutions_px)

    @property
    def all_buckets(self) -> tuple[BucketSettings, ...]:
        """Bucket settings of every resolution."""
        return tuple(self.buckets.model_copy(update={"resolution_px": side_px}) for side_px in self.all_resolutions_px)

    @property
    def saved_steps(self) -> list[int]:
        """The steps of a phase that have a checkpoint: every `save_every`, and the last; `auto` resolved."""
        last = self.fixed_steps
        return sorted({*range(self.save_every, last + 1, self.save_every), last})

    @property
    def fixed_steps(self) -> int:
        """The number of steps, once `auto` is resolved."""
        assert self.steps != "auto", "steps: auto must be resolved with the number of samples first"
        return self.steps

    def resolve_steps(self, samples: int) -> TrainingSettings:
        """The same settings with the number of steps that `auto` stands for with so many samples in the phase."""
        if self.steps != "auto":
            return self
        return self.model_copy(update={"steps": max(AUTO_FLOOR, self.steps_a_sample * samples)})

    @property
    def steps_a_sample(self) -> int:
        """Steps a sample of `steps: auto`: 30 at rank 32 and 20 at rank 128, as published; the nearer one between."""
        return 30 if self.rank < 64 else 20

    @model_validator(mode="after")
    def check_agreement(self) -> TrainingSettings:
        """What two keys must agree on."""
        name, schedule = self.optimizer.name, self.schedule
        if self.steps != "auto" and schedule.name != "constant" and schedule.warmup_steps >= self.steps:
            raise ValueError(f"schedule.warmup_steps ({schedule.warmup_steps}) must be below steps ({self.steps})")
        if name == "schedulefree" and schedule.name != "constant":
            raise ValueError(
                f"schedule.name ({schedule.name}) must be constant with optimizer.name schedulefree, which averages instead"
            )
        if name == "prodigy" and self.learning_rate < LOWEST_PRODIGY_RATE:
            raise ValueError(
                f"learning_rate ({self.learning_rate:g}) must be at least {LOWEST_PRODIGY_RATE} with optimizer.name prodigy, which "
                "multiplies it by a step size that it finds itself, and finds none at a small rate; set learning_rate: 1.0"
            )
        if (name == "adamw_kahan") != (self.adapter_precision == "bfloat16"):
            raise ValueError(
                f"adapter_precision ({self.adapter_precision}) and optimizer.name ({name}) do not fit: Kahan summation "
                "makes up for bfloat16 and has no effect in float32, and the other optimizers lose small steps in bfloat16"
            )
        if self.adapter.kind == "lokr" and self.init != "kaiming":
            raise ValueError(
                "init must be kaiming with adapter.kind lokr, which has no factor that starts at gaussian / rank"
            )
        if self.adapter.kind == "lokr" and self.adapter.lokr_factor * self.rank > HIGHEST_LOKR_RANK:
            raise ValueError(
                f"adapter.lokr_factor × rank ({self.adapter.lokr_factor} × {self.rank}) must be at most {HIGHEST_LOKR_RANK}: "
                "it is the rank of the LoRA that a LoKr equals, as which it is drawn and published"
            )
        if self.buckets.diptych and self.losses.velocity.region != "right_half":
            raise ValueError(
                "losses.velocity.region must be right_half with buckets.diptych, or the source would be learned"
            )
        if self.buckets.diptych and self.losses.prior_preservation:
            raise ValueError("losses.prior_preservation learns single pictures, which buckets.diptych does not have")
        if self.losses.image_slider and self.losses.velocity.region != "whole":
            raise ValueError(
                "losses.image_slider reads source and target apart, which diptychs join; leave buckets.diptych off and "
                f"losses.velocity.region at whole (found {self.losses.velocity.region})"
            )
        if self.losses.masked_prior and self.masked_loss.kind is None:
            raise ValueError("losses.masked_prior keeps what lies outside of the mask; set masked_loss.kind")
        if self.ema.decay and name == "schedulefree":
            raise ValueError("ema.decay must be 0 with optimizer.name schedulefree, which is an average already")
        return self

    @model_validator(mode="after")
    def check_machine(self) -> TrainingSettings:
        """What keys about views, memory and speed must agree on."""
        if self.base_precision != "full" and "base" in self.offload:
            raise ValueError(
                f"offload: base keeps the base in full, but base_precision is {self.base_precision}; choose one"
            )
        if self.base_precision != "full" and self.adapter.kind != "lora":
            raise ValueError(
                f"base_precision must be full with adapter.kind {self.adapter.kind}, which computes with the base's weights; "
                f"found {self.base_precision}"
            )
        if self.losses.contrastive and (self.flip or self.resolutions_px):
            raise ValueError("losses.contrastive pairs samples of one size; leave flip at 0 and resolutions_px empty")
        if self.compile and "base" in self.offload:
            raise ValueError("compile gains nothing with offload: base, which waits for copies; choose one")
        if self.processes > self.gradient_accumulation:
            raise ValueError(
                f"processes ({self.processes}) must not be more than gradient_accumulation ({self.gradient_accumulation}), "
                "whose micro-batches they share. Raise gradient_accumulation and lower batch_size to keep the effective batch"
            )
        if len(set(self.all_resolutions_px)) != len(self.all_resolutions_px):
            raise ValueError(
                f"resolutions_px {list(self.resolutions_px)} must differ from each other and from buckets.resolution_px "
                f"({self.buckets.resolution_px})"
            )
        return self


class Variant(Settings):
    """One way to make a LoRA: trained with changed settings, here or by another trainer, or read from files."""

    lora: str | None = Field(
        default=None, description="Glob of finished LoRA files that compete in the same table; nothing is trained."
    )
    trainer: str | None = Field(
        default=None, description="Another trainer that trains this variant, by its command in `trainers`."
    )
    training: Annotated[dict[str, object], KeysOf(TrainingSettings)] = Field(
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
    mirrored: bool = False
    class_captions: bool = False
    sources: bool = False
    trigger: str = ""
    class_word: str = ""
    prompts: tuple[str, ...] = ()
    regularisation_caption: str = ""
    offline: bool = True
    cpu_threads: int = 1


class TrainStage(Settings):
    """The slice that train_lora reads, for one variant and phase."""

    training: TrainingSettings
    base_model: ModelSource
    init: str
    offline: bool = True
