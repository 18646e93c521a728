"""The objective of a training, from its settings."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from likeness.config.losses import LossesSettings
from likeness.training.data import TrainingData
from likeness.training.losses.identity import make_identity_loss
from likeness.training.losses.objective import Loss, Objective, Term, WatchedObjective
from likeness.training.losses.perceptual import make_contrastive_loss, make_lpips_loss
from likeness.training.losses.preservation import masked_prior, output_preservation
from likeness.training.losses.slider import ImageSliderLoss, SliderLoss
from likeness.training.losses.velocity import VelocityLoss

OF_CLASS = "prior_preservation"
"""The one loss about pictures of the class."""
OF_THEIR_OWN = ("output_preservation", "slider", "image_slider")
"""Losses that read only predictions that they ask for themselves."""
FEW = 2
"""More auxiliary losses than this are hard to balance by hand, so their gradients are compared in the log."""

MAKERS: dict[str, Callable[[Any, TrainingData, Any], Loss]] = {
    "velocity": lambda settings, data, vae: VelocityLoss(settings.weighting),
    "output_preservation": lambda settings, data, vae: output_preservation,
    "prior_preservation": lambda settings, data, vae: VelocityLoss(settings.weighting),
    "masked_prior": lambda settings, data, vae: masked_prior,
    "slider": lambda settings, data, vae: SliderLoss(settings, [data.prompts[one] for one in settings.prompts]),
    "image_slider": lambda settings, data, vae: ImageSliderLoss(settings, data.prompts[settings.prompt]),
    "identity": make_identity_loss,
    "lpips": make_lpips_loss,
    "contrastive": make_contrastive_loss,
}
"""How each loss is made from its settings, the training's data and the VAE, in the order of the log."""

logger = logging.getLogger(__name__)


def make_objective(settings: LossesSettings, data: TrainingData, vae: Any = None) -> Objective:
    """The losses that are on, in the order of their settings; with many of them, one that watches their balance.

    `vae` is needed by losses that look at the picture.
    """
    on = {name: one for name in MAKERS if (one := getattr(settings, name)) is not None}
    terms = tuple(
        Term(name, one, MAKERS[name](one, data, vae), name == OF_CLASS, name not in OF_THEIR_OWN)
        for name, one in on.items()
    )
    if len(settings.auxiliary) <= FEW:
        return Objective(terms)
    logger.warning(
        "%d auxiliary losses are on (%s): more than %d are hard to balance. log.parquet compares their gradients "
        "(grad_ratios); lower the weight of one that is much above 1",
        *(len(settings.auxiliary), ", ".join(settings.auxiliary), FEW),
    )
    return WatchedObjective(terms)
