"""Settings of the losses: each has its own weight, a window of noise levels, and a column in the training's log."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from likeness.config.base import Settings


class LossSettings(Settings):
    """What every loss has."""

    weight: float = Field(default=1.0, ge=0, le=1000, description="Factor of the loss in the sum; 0 only watches it.")
    sigma_min: float = Field(default=0.0, ge=0, le=1, description="Samples below this noise level do not count.")
    sigma_max: float = Field(default=1.0, ge=0, le=1, description="Samples above this noise level do not count.")

    @model_validator(mode="after")
    def check_window(self) -> LossSettings:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min ({self.sigma_min}) must be below sigma_max ({self.sigma_max})")
        return self


class VelocityLossSettings(LossSettings):
    """Squared error of the velocity: what flow matching learns from."""

    weighting: Literal["none", "sigma2", "bell"] = Field(
        default="none",
        description="How noise levels count: alike; by their square, which is the squared error of the image (ConsisLoRA); "
        "or by a bell around one half with mean 1.",
    )
    face_weight: float = Field(
        default=0.0,
        ge=0,
        le=100,
        description="How much more the subject's face counts than the rest, on top of the mask; the mean weight stays 1.",
    )
    region: Literal["whole", "right_half"] = Field(
        default="whole",
        description="right_half learns only the right half of diptychs, whose left half shows the source (ICEdit).",
    )


class LossesSettings(Settings):
    """The losses whose sum is optimised; null is off."""

    velocity: VelocityLossSettings = VelocityLossSettings()

    @property
    def auxiliary(self) -> tuple[str, ...]:
        """Names of the losses that are on beside the velocity's, with a weight."""
        fields = [name for name in type(self).model_fields if name != "velocity"]
        return tuple(name for name in fields if (one := getattr(self, name)) is not None and one.weight > 0)
