"""The learning rate as a pure function of the step, so that a resumed run has no schedule to restore."""

from __future__ import annotations

import math

from likeness.config.training import ScheduleSettings


def lr_at(step: int, settings: ScheduleSettings, peak: float, steps: int) -> float:
    """Learning rate of the optimizer step that follows `step` completed ones.

    Linear warm-up from 0, then constant, half a cosine down to 0 at `steps`, a polynomial down to `end`, or two stages.
    Must agree with diffusers `get_scheduler("constant_with_warmup", "cosine" or "polynomial")`.
    """
    if step < settings.warmup_steps:
        return peak * step / settings.warmup_steps
    progress = min(1.0, (step - settings.warmup_steps) / max(1, steps - settings.warmup_steps))
    return peak * SHAPES[settings.name](progress, step / steps, settings)


def constant(progress: float, share: float, settings: ScheduleSettings) -> float:
    return 1.0


def cosine(progress: float, share: float, settings: ScheduleSettings) -> float:
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


def polynomial(progress: float, share: float, settings: ScheduleSettings) -> float:
    return settings.end + (1.0 - settings.end) * (1.0 - progress) ** settings.power


def two_stage(progress: float, share: float, settings: ScheduleSettings) -> float:
    return settings.end if share >= settings.stage_at else 1.0


SHAPES = {"constant": constant, "cosine": cosine, "polynomial": polynomial, "two_stage": two_stage}
"""Share of the peak by progress after the warm-up, and by share of all steps; both 0..1."""
