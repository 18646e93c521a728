"""The learning rate as a pure function of the step, so that a resumed run has no schedule to restore."""

from __future__ import annotations

import math

from likeness.config.training import ScheduleSettings


def lr_at(step: int, settings: ScheduleSettings, peak: float, steps: int) -> float:
    """Learning rate of the optimizer step that follows `step` completed ones.

    Linear warm-up from 0, then constant, or half a cosine down to 0 at `steps`. Must agree with diffusers
    `get_scheduler("constant_with_warmup" or "cosine")`.
    """
    if step < settings.warmup_steps:
        return peak * step / settings.warmup_steps
    if settings.name == "constant":
        return peak
    progress = (step - settings.warmup_steps) / max(1, steps - settings.warmup_steps)
    return peak * max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
