"""The objective of a training, from its settings."""

from __future__ import annotations

from likeness.config.losses import LossesSettings
from likeness.training.losses.objective import Objective, Term
from likeness.training.losses.velocity import VelocityLoss


def make_objective(settings: LossesSettings) -> Objective:
    """The losses that are on, in the order of their settings."""
    return Objective((Term("velocity", settings.velocity, VelocityLoss(settings.velocity)),))
