"""The LoRA on the transformer: float32 adapter weights over a frozen base, made by peft.

How the adapter starts is a function of the seed and the module's name, so that it depends neither on the order of
modules nor on what was drawn before. Names below are the transformer's own: `<module>.lora_A.weight` (rank × inputs)
and `<module>.lora_B.weight` (outputs × rank).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from likeness.config.training import TrainingSettings
from likeness.errors import UserError
from likeness.klein.family import Layout
from likeness.klein.targets import check_count, target_regex
from likeness.training.noise import generator_for

ADAPTER = "default"
Weights = dict[str, nn.Parameter]


def add_adapter(transformer: Any, settings: TrainingSettings, layout: Layout) -> Weights:
    """Freeze the transformer, add the LoRA, initialise it, and return its weights by name, in the model's order.

    Raises UserError where the targets match nothing, or another number of modules than the layout promises.
    """
    regex = target_regex(settings.targets, layout)
    count = check_count(transformer, regex, layout)
    transformer.requires_grad_(False)
    alpha: Any = settings.resolved_alpha  # peft says int, and divides it by the rank all the same
    config = LoraConfig(r=settings.rank, lora_alpha=alpha, target_modules=regex, init_lora_weights=True)
    transformer.add_adapter(config, adapter_name=ADAPTER)
    weights = adapter_weights(transformer)
    assert len(weights) == 2 * count, (len(weights), count)
    for name, weight in weights.items():
        weight.data = weight.data.float()
        initialise(name, weight, settings)
    return weights


def adapter_weights(transformer: nn.Module) -> Weights:
    """The adapter's weights by name, without peft's adapter name in it."""
    return {
        name.replace(f".{ADAPTER}.weight", ".weight"): parameter
        for name, parameter in transformer.named_parameters()
        if f".lora_A.{ADAPTER}." in name or f".lora_B.{ADAPTER}." in name
    }


@contextlib.contextmanager
def without_adapter(transformer: nn.Module) -> Iterator[None]:
    """Let the bare model speak; unlike peft's own switch, what is trained stays as it was."""
    layers = [module for module in transformer.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


@torch.no_grad()
def initialise(name: str, weight: torch.Tensor, settings: TrainingSettings) -> None:
    """Start a weight: up matrices at 0; down matrices normal with deviation 1 / rank, or uniform within ±1 / √inputs."""
    if ".lora_B." in name:
        weight.zero_()
        return
    generator = generator_for(settings.seed, "adapter", name)
    rank, inputs = weight.shape
    if settings.init == "gaussian":
        values = generator.standard_normal((rank, inputs), dtype="float32") / rank
    else:
        values = (2.0 * generator.random((rank, inputs), dtype="float32") - 1.0) / math.sqrt(inputs)
    weight.copy_(torch.from_numpy(values))


@torch.no_grad()
def load_weights(weights: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor], where: str) -> None:
    """Copy `found` into the adapter; UserError where modules or shapes differ (another rank or other targets)."""
    if set(weights) != set(found):
        absent, surplus = sorted(set(weights) - set(found)), sorted(set(found) - set(weights))
        raise UserError(
            f"{where}: it trains other modules than training.targets: {len(absent)} are missing and {len(surplus)} are too many "
            f"(first: {(absent + surplus)[0]!r}). Use the same targets, or init: scratch."
        )
    for name, weight in weights.items():
        if weight.shape != found[name].shape:
            raise UserError(
                f"{where}: {name} has the shape {tuple(found[name].shape)}, but training.rank {min(weight.shape)} needs "
                f"{tuple(weight.shape)}. Use the same rank, or init: scratch."
            )
        weight.copy_(found[name])
