"""Settings of the masks stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from likeness.config.base import ModelChoice, Settings

MaskKind = Literal["face", "head", "person"]


class MaskSettings(Settings):
    """Which model makes masks, which kinds, and how they are grown."""

    backend: str = Field(
        default="sam2", description="sam2 (transformers), sam2-package, grabcut or folder, or a registered name."
    )
    model: ModelChoice | None = Field(
        default={"source": "facebook/sam2.1-hiera-tiny"}, description="Weights of the mask model; none for grabcut."
    )  # type: ignore[arg-type]
    kinds: tuple[MaskKind, ...] = Field(
        default=("face", "head", "person"), min_length=1, description="Which masks are made of every candidate face."
    )
    grow_px: dict[MaskKind, int] = Field(
        default_factory=dict,
        description="Grow (positive) or shrink (negative) a kind's mask, in px of the photo; hair is lost by shrinking.",
    )
    working_side_px: int = Field(
        default=1024, ge=64, le=4096, description="Longer side at which the mask model works, in px."
    )


class MaskStage(Settings):
    """The slice that make_masks reads."""

    masks: MaskSettings
    offline: bool = True
    cpu_threads: int = 1
