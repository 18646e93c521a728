"""Optimizers by name, all from maintained packages.

The learning rate is set before every step, so optimizers are made with a rate that means nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from likeness.config.training import OptimizerSettings
from likeness.errors import UserError

Parameters = list[torch.nn.Parameter]


def make_optimizer(parameters: Iterable[torch.nn.Parameter], settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Make the optimizer; UserError where its package does not load."""
    try:
        return MAKERS[settings.name](list(parameters), settings)
    except ImportError as error:
        raise UserError(
            f"training.optimizer.name: {settings.name} needs a package that does not load ({error}). "
            "Install it, or set adamw."
        ) from error


def shared(settings: OptimizerSettings) -> dict[str, Any]:
    """What the family of Adam has in common."""
    betas = (settings.beta1, settings.beta2)
    return {"lr": 0.0, "betas": betas, "eps": settings.eps, "weight_decay": settings.weight_decay}


def adamw(parameters: Parameters, settings: OptimizerSettings) -> torch.optim.Optimizer:
    # The fused kernel is one call for all tensors: an adapter has hundreds of small ones.
    return torch.optim.AdamW(parameters, fused=True, **shared(settings))


def adamw8bit(parameters: Parameters, settings: OptimizerSettings) -> torch.optim.Optimizer:
    from bitsandbytes.optim.adamw import AdamW8bit

    return AdamW8bit(parameters, **shared(settings))


def adamw_kahan(parameters: Parameters, settings: OptimizerSettings) -> torch.optim.Optimizer:
    from optimi import AdamW

    return AdamW(parameters, kahan_sum=True, **shared(settings))


def adafactor(parameters: Parameters, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Adafactor with a given rate.

    Its own scaling multiplies the rate by each matrix's size, which for an adapter's up matrices, which start at 0, is a
    thousandth; that is switched off, and so are its own schedule and warm-up.
    """
    from transformers.optimization import Adafactor

    own = {"relative_step": False, "scale_parameter": False, "warmup_init": False}
    return Adafactor(parameters, lr=0.0, weight_decay=settings.weight_decay, **own)


def prodigy(parameters: Parameters, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Prodigy with decoupled decay; a warm-up, where there is one, does not enter its estimate of the distance."""
    from prodigyopt import Prodigy

    own = {"decouple": True, "use_bias_correction": False, "safeguard_warmup": True, "lr": 1.0}
    return Prodigy(parameters, **{**shared(settings), **own})


def schedulefree(parameters: Parameters, settings: OptimizerSettings) -> torch.optim.Optimizer:
    from schedulefree import AdamWScheduleFree

    optimizer = AdamWScheduleFree(parameters, **shared(settings))
    optimizer.train()
    return optimizer


MAKERS: dict[str, Callable[[Parameters, OptimizerSettings], torch.optim.Optimizer]] = {
    "adamw": adamw,
    "adamw8bit": adamw8bit,
    "adamw_kahan": adamw_kahan,
    "adafactor": adafactor,
    "prodigy": prodigy,
    "schedulefree": schedulefree,
}


@contextlib.contextmanager
def weights_to_save(optimizer: torch.optim.Optimizer, weights: Sequence[torch.nn.Parameter]) -> Iterator[None]:
    """Put the weights that the optimizer stands for in their place, and afterwards the ones it works on, bit for bit.

    A schedule-free optimizer trains at one point and stands for an average; its own way back would round.
    """
    if not hasattr(optimizer, "eval"):
        yield
        return
    kept = [weight.detach().clone() for weight in weights]
    optimizer.eval()  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        optimizer.train()  # pyright: ignore[reportAttributeAccessIssue]
        with torch.no_grad():
            for weight, value in zip(weights, kept, strict=True):
                weight.copy_(value)
