"""The adapter on the transformer: its weights, float32 unless asked otherwise, over a frozen base, made by peft.

How the adapter starts is a function of the seed and the module's name, so that it depends neither on the order of
modules nor on what was drawn before. Names below are the transformer's own: `<module>.lora_A.weight` (rank × inputs)
and `<module>.lora_B.weight` (outputs × rank); a DoRA's `<module>.lora_magnitude_vector.weight` (outputs); a LoKr's
`<module>.lokr_w1` and `.lokr_w2`, or `.lokr_w2_a` and `.lokr_w2_b` (see `shape.weight_shapes`).
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn

from likeness.config.training import TrainingSettings
from likeness.errors import UserError
from likeness.klein.family import Layout
from likeness.klein.libraries import BaseTunerLayer, LoKrConfig, LoraConfig, PeftConfig
from likeness.klein.targets import check_count, target_regex
from likeness.training.noise import generator_for
from likeness.training.shape import chosen, shape_adapter, weight_shapes

ADAPTER = "default"
Weights = dict[str, nn.Parameter]
FUSED = ".attn.to_qkv_mlp_proj"
SIDE = re.compile(r"\.(lora_A|lora_B|lora_magnitude_vector|lokr_w[12](?:_[ab])?)(?=\.|$)")
"""What parts a module's name from the weight's own."""
LAST_FACTORS = frozenset({"lora_B", "lokr_w2", "lokr_w2_b"})
"""Factors that start at 0, as LoRA and LyCORIS have it."""


def add_adapter(transformer: Any, settings: TrainingSettings, layout: Layout) -> Weights:
    """Freeze the transformer, add the LoRA, initialise it, and return its weights by name, in the model's order.

    Raises UserError where the targets match nothing, or another number of modules than the layout promises.
    """
    check_count(transformer, target_regex(settings.targets, layout), layout)
    transformer.requires_grad_(False)
    transformer.add_adapter(peft_config(settings, layout), adapter_name=ADAPTER)
    weights = adapter_weights(transformer)
    expected = weight_shapes(settings, layout)
    assert {name: tuple(weight.shape) for name, weight in weights.items()} == expected, sorted(expected)[0]
    layers: dict[str, Any] = dict(transformer.named_modules())
    for name, weight in weights.items():
        weight.data = weight.data.to(getattr(torch, settings.adapter_precision))
        initialise(name, weight, settings, layers[module_of(name)].base_layer)
    restrict(weights, settings, layout)
    return weights


def peft_config(settings: TrainingSettings, layout: Layout) -> PeftConfig:
    """The adapter as peft is told of it, with every module's own rank and alpha."""
    shapes, alpha = shape_adapter(settings, layout), settings.resolved_alpha
    common: dict[str, Any] = {
        "r": settings.rank,
        "target_modules": target_regex(settings.targets, layout),
        "rank_pattern": {re.escape(name): one.rank for name, one in shapes.items() if one.rank != settings.rank},
        "alpha_pattern": {re.escape(name): one.alpha for name, one in shapes.items() if one.alpha != alpha},
    }
    # peft says that alpha is a whole number, and divides it by the rank all the same.
    if settings.adapter.kind == "lokr":
        return LoKrConfig(alpha=alpha, decompose_factor=settings.adapter.lokr_factor, **common)  # pyright: ignore
    return LoraConfig(lora_alpha=alpha, use_dora=settings.adapter.kind == "dora", **common)  # pyright: ignore


def module_of(name: str) -> str:
    """The module that a weight belongs to."""
    return SIDE.split(name)[0]


def restrict(weights: Weights, settings: TrainingSettings, layout: Layout) -> None:
    """Freeze what the settings freeze, and keep the gradient of the fused projection's MLP rows at 0 where asked to."""
    frozen = chosen(settings.adapter.freeze, settings, layout, "adapter.freeze") if settings.adapter.freeze else set()
    for name, weight in weights.items():
        module = module_of(name)
        weight.requires_grad_(module not in frozen and not (settings.adapter.orthogonal and ".lora_A." in name))
        if settings.adapter.rows == "qkv" and ".lora_B." in name and module.endswith(FUSED):
            rows_O1 = (torch.arange(weight.shape[0]) < 3 * layout.width)[:, None].to(weight.dtype)
            if weight.requires_grad:
                weight.register_hook(lambda gradient, rows=rows_O1: gradient * rows.to(gradient.device))
    if not any(weight.requires_grad for weight in weights.values()):
        raise UserError("training.adapter.freeze: it covers all targets, so nothing would be trained.")


def adapter_weights(transformer: nn.Module) -> Weights:
    """The adapter's weights by name, without peft's adapter name in it."""
    return {
        re.sub(rf"\.{ADAPTER}(?=$|\.weight$)", "", name): parameter
        for name, parameter in transformer.named_parameters()
        if SIDE.search(name)
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


class AdapterScales(contextlib.AbstractContextManager[None]):
    """Within it, the adapter's layers of a module count as they do now, times `strength`; below 0 they count against.

    It may be entered again and again, since a block may be recomputed more than once, and puts back exactly what it found.
    Of a DoRA only the low-rank part has a strength, as where one is drawn.
    """

    def __init__(self, module: nn.Module, strength: float = 1.0) -> None:
        self._layers: list[Any] = [layer for layer in module.modules() if isinstance(layer, BaseTunerLayer)]
        self._scales = [strength * scale for scale in self._now()]
        self._found: list[list[float]] = []

    def __enter__(self) -> None:
        self._found.append(self._now())
        self._set(self._scales)

    def __exit__(self, *_: object) -> None:
        self._set(self._found.pop())

    def _now(self) -> list[float]:
        return [layer.scaling[ADAPTER] for layer in self._layers]

    def _set(self, scales: Sequence[float]) -> None:
        for layer, scale in zip(self._layers, scales, strict=True):
            layer.scaling[ADAPTER] = scale


@torch.no_grad()
def initialise(name: str, weight: torch.Tensor, settings: TrainingSettings, base: Any) -> None:
    """Start a weight so that the adapter changes nothing: the last factor at 0, a DoRA's row lengths at those of the base.

    Other factors are normal with deviation 1 / rank, or uniform within ±1 / √columns.
    """
    side, rows, columns = SIDE.split(name)[1], weight.shape[0], weight.shape[-1]
    if side == "lora_magnitude_vector":
        # peft takes the length in the base's type; rounded to bfloat16 it would change the model from the start.
        weight.copy_(base.weight.float().norm(dim=1))
    elif side in LAST_FACTORS:
        weight.zero_()
    elif settings.adapter.orthogonal is not None:
        weight.copy_(orthogonal_rows(settings.adapter.orthogonal.concept, rows, columns))
    else:
        weight.copy_(starting_values(name, rows, columns, settings))


def starting_values(name: str, rows: int, columns: int, settings: TrainingSettings) -> torch.Tensor:
    """What chance gives a factor, by its name; `rows` is the rank of a LoRA's first one."""
    generator = generator_for(settings.seed, "adapter", name)
    if settings.init == "gaussian":
        return torch.from_numpy(generator.standard_normal((rows, columns), dtype="float32") / rows)
    values = (2.0 * generator.random((rows, columns), dtype="float32") - 1.0) / math.sqrt(columns)
    return torch.from_numpy(values)


@lru_cache(maxsize=8)
def orthogonal_rows(concept: int, rank: int, inputs: int) -> torch.Tensor:
    """Rows `concept`·rank … of the orthonormal basis that all LoRAs share for this number of inputs (arXiv:2312.02432).

    The basis is that of Gram and Schmidt from normal columns, so each concept's rows do not depend on how many follow. Rows
    of two concepts are orthogonal at one rank; at two ranks their places overlap.
    """
    last = (concept + 1) * rank
    if last > inputs:
        raise UserError(
            f"training.adapter.orthogonal.concept: {inputs} inputs have directions for {inputs // rank} concepts of rank "
            f"{rank}, numbered from 0; found {concept}. Lower the rank, or leave modules with few inputs out."
        )
    columns = [generator_for(0, "orthogonal basis", inputs, column).standard_normal(inputs) for column in range(last)]
    basis_IR, signs_RR = torch.linalg.qr(torch.from_numpy(np.stack(columns, axis=1)))
    basis_IR = basis_IR * signs_RR.diagonal().sign()
    return basis_IR[:, concept * rank :].T.float()


@torch.no_grad()
def load_weights(
    weights: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor], where: str, partial: bool = False
) -> None:
    """Copy `found` into the adapter; UserError where modules or shapes differ (another rank or other targets).

    With `partial`, trained modules that the file lacks start fresh; frozen ones must be there.
    """
    fresh = {name for name in weights if weights[name].requires_grad} - set(found) if partial else set()
    weights = {name: weight for name, weight in weights.items() if name not in fresh}
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
