"""Settings of evaluation, choice and publishing."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from likeness.config.base import ModelChoice, ModelSource, Settings
from likeness.config.metrics import check_ranking_metric
from likeness.config.placeholders import PromptText
from likeness.config.training import BucketSettings


class Prompt(Settings):
    """One evaluation prompt; `{trigger}` and `{class}` stand for the subject."""

    text: PromptText = Field(
        min_length=1, description="The prompt, with {trigger} and {class} where the subject belongs."
    )
    split: Literal["select", "report"] | None = Field(
        default=None, description="Which half it belongs to; null: by the hash of its name."
    )
    kind: Literal["subject", "bleed", "neutral"] = Field(
        default="subject",
        description="subject; bleed: the class without the trigger; neutral: no person at all, must stay as the base draws it.",
    )


class EvaluationSettings(Settings):
    """What is drawn and measured for every checkpoint."""

    recogniser_backend: str = Field(
        default="insightface", description="Backend of the faces stage that scores identity."
    )
    recogniser: ModelChoice = Field(
        default={"source": "antelopev2"}, description="Another recogniser than any used in training."
    )  # type: ignore[arg-type]
    detection_size_px: int = Field(
        default=640, ge=32, le=2048, description="Side of the square that the detector sees, in px."
    )
    min_score: float = Field(default=0.5, ge=0, le=1, description="Detections below this score are not faces.")
    seeds: tuple[int, ...] = Field(
        default=(1, 2, 3, 4),
        min_length=2,
        description="Seeds of the initial noise; 1 and 2 select, 3 and 4 report, others by their hash, so that adding one moves no other.",
    )
    sampling_steps: int = Field(default=20, ge=1, le=100, description="Denoising steps of an evaluation image.")
    guidance_scale: float = Field(default=4.0, ge=1, le=20, description="Classifier-free guidance; 1 is none.")
    width_px: int = Field(
        default=1024, ge=16, le=4096, description="Width of evaluation images, in px; an edit takes its source's size."
    )
    height_px: int = Field(default=1024, ge=16, le=4096, description="Height of evaluation images, in px.")
    enlarge_to_px: int | None = Field(
        default=None, ge=16, le=4096, description="Enlarge smaller images to this shorter side before measuring, in px."
    )
    batch_size: int = Field(default=4, ge=1, le=256, description="Images drawn at once.")
    finalists: int = Field(
        default=3, ge=1, le=20, description="How many checkpoints are also drawn on the report half."
    )
    strengths: tuple[float, ...] = Field(
        default=(0.6, 0.8, 1.0, 1.2, 1.5),
        min_length=1,
        description="LoRA strengths at which the finalists are drawn on the select half.",
    )
    distilled_model: ModelChoice | None = Field(
        default=None, description="Distilled base on which finalists are drawn too; null: none."
    )
    lpips: ModelChoice | None = Field(
        default=None, description="LPIPS weights (AlexNet trunk file); null: the metric is null."
    )
    clip: ModelChoice | None = Field(default=None, description="CLIP model for clip_score; null: the metric is null.")
    body_pose: ModelChoice | None = Field(
        default=None,
        description="Body keypoint model (ViTPose) for head_ratio; null: face height against frame height.",
    )
    precision: Literal["float32", "bfloat16"] = Field(default="bfloat16", description="Type of the base while drawing.")
    cpu_threads: int = Field(default=1, ge=1, le=64, description="Threads of numeric libraries on the CPU.")


class ChoiceSettings(Settings):
    """How the best checkpoint is found; floors compare with the base or the recipe's limit."""

    metric: Annotated[str, AfterValidator(check_ranking_metric)] | None = Field(
        default=None, description="Metric to rank by; null: the recipe's (likeness, target_error or style_similarity)."
    )
    min_detected: float | None = Field(
        default=0.8, ge=0, le=1, description="Smallest share of images in which a face is found."
    )
    max_bleed: float | None = Field(default=0.5, description="Largest likeness of images drawn without the trigger.")
    min_diversity: float | None = Field(
        default=0.5, ge=0, description="Smallest diversity over seeds, as a share of the base's."
    )
    min_background_ssim: float | None = Field(default=None, ge=-1, le=1, description="Smallest background likeness.")
    min_clip_score: float | None = Field(
        default=None, description="Largest loss of clip_score against the base, as a share."
    )
    min_csim: float | None = Field(
        default=None, ge=-1, le=1, description="Edit: smallest identity cosine to the source."
    )
    standard_errors: float = Field(
        default=1.0,
        ge=0,
        le=3,
        description="The earliest checkpoint within so many standard errors of the best is taken.",
    )


class Pick(Settings):
    """A choice made by hand: that checkpoint is published, numbers stay."""

    variant: str = Field(description="Name of the variant.")
    phase: str = Field(description="Name of the phase.")
    step: int = Field(ge=0, description="The checkpoint's step.")


class ScoreStage(Settings):
    """The slice that score_checkpoints and score_finalists read."""

    evaluation: EvaluationSettings
    prompts: dict[str, Prompt]
    recipe: str
    kind: str
    trigger: str
    class_word: str
    base_model: ModelSource
    buckets: BucketSettings
    offline: bool = True
    has_recogniser: bool = True
    """Whether the recogniser's files are there: no program reads it, but where it changes, the scoring starts."""


class ChoiceStage(Settings):
    """The slice that choose_finalists and choose_checkpoint read."""

    choice: ChoiceSettings
    finalists: int
    recipe: str
    pick: Pick | None = None


class PublishStage(Settings):
    """The slice that publish_lora reads."""

    recipe: str
    trigger: str
    class_word: str
    base_model: ModelSource
    training: dict[str, object]
    offline: bool = True
