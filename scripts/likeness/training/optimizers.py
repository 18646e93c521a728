"""Optimizers by name, all from maintained packages."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from likeness.config.training import OptimizerSettings
from likeness.errors import UserError


def make_optimizer(parameters: Iterable[torch.nn.Parameter], settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Make the optimizer; the learning rate is set before every step, so none is given here.

    Raises UserError where adamw8bit is asked for and bitsandbytes is not installed.
    """
    shared = {
        "lr": 0.0,
        "betas": (settings.beta1, settings.beta2),
        "eps": settings.eps,
        "weight_decay": settings.weight_decay,
    }
    if settings.name == "adamw":
        # The fused kernel is one call for all tensors: an adapter has hundreds of small ones.
        return torch.optim.AdamW(parameters, fused=True, **shared)
    try:
        from bitsandbytes.optim.adamw import AdamW8bit
    except ImportError as error:
        raise UserError(
            f"training.optimizer.name: adamw8bit needs the package bitsandbytes, which does not load ({error}). "
            "Install it, or set adamw."
        ) from error
    return AdamW8bit(parameters, **shared)
