"""Which modules an adapter has, with the rank and alpha of each: known before any weight is loaded."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple, TypeVar

from likeness.config.training import TrainingSettings
from likeness.errors import UserError
from likeness.klein.family import Layout, linear_shapes
from likeness.klein.targets import matched_names, target_regex

BYTES = {"float32": 4, "bfloat16": 2}
Value = TypeVar("Value")


class ModuleShape(NamedTuple):
    """Rank and alpha of one module; its scale is alpha / rank."""

    rank: int
    alpha: float

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def shape_adapter(settings: TrainingSettings, layout: Layout) -> dict[str, ModuleShape]:
    """Rank and alpha of every target, in the model's order; UserError for a choice that fits no target."""
    names = matched_names(target_regex(settings.targets, layout), layout)
    ranks = by_choice(settings.adapter.ranks, settings, layout, "adapter.ranks")
    alphas = by_choice(settings.adapter.alphas, settings, layout, "adapter.alphas")
    scale = settings.resolved_alpha / settings.rank
    found = {}
    for name in names:
        rank = ranks.get(name, settings.rank)
        found[name] = ModuleShape(rank, alphas.get(name, scale * rank))
    return found


def by_choice(values: Mapping[str, Value], settings: TrainingSettings, layout: Layout, key: str) -> dict[str, Value]:
    """Spread values over the targets that their choices match; the first choice that matches counts."""
    found: dict[str, Value] = {}
    for choice, value in values.items():
        for name in chosen(choice, settings, layout, f"{key}.{choice}"):
            found.setdefault(name, value)
    return found


def chosen(choice: str, settings: TrainingSettings, layout: Layout, key: str) -> set[str]:
    """The targets that a choice matches; UserError where there are none, since nothing configured is left unused."""
    regex = re.compile(target_regex(choice, layout))
    names = matched_names(target_regex(settings.targets, layout), layout)
    found = {name for name in names if regex.fullmatch(name)}
    if not found:
        raise UserError(
            f"training.{key}: {choice!r} matches none of the modules that training.targets {settings.targets!r} trains. "
            "Correct it, or add those modules to the targets."
        )
    return found


MAGNITUDE = "lora_magnitude_vector.weight"


def weight_shapes(settings: TrainingSettings, layout: Layout) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight of the adapter, as peft makes them; UserError for a LoKr that does not divide a target."""
    linear, found = linear_shapes(layout), {}
    for name, one in shape_adapter(settings, layout).items():
        outputs, inputs = linear[name]
        if settings.adapter.kind == "lokr":
            found |= {f"{name}.{side}": shape for side, shape in _kronecker(name, one.rank, outputs, inputs, settings)}
            continue
        found |= {f"{name}.lora_A.weight": (one.rank, inputs), f"{name}.lora_B.weight": (outputs, one.rank)}
        if settings.adapter.kind == "dora":
            found[f"{name}.{MAGNITUDE}"] = (outputs,)
    return found


def _kronecker(
    name: str, rank: int, outputs: int, inputs: int, settings: TrainingSettings
) -> Iterator[tuple[str, tuple[int, int]]]:
    """Sides and shapes of a LoKr module: w1 whole, w2 whole where its rank would save nothing (peft LoKrLayer)."""
    factor = settings.adapter.lokr_factor
    if outputs % factor or inputs % factor:
        raise UserError(
            f"training.adapter.lokr_factor: {factor} does not divide {name}, which has {outputs} outputs and {inputs} inputs. "
            "Take a divisor of both, or leave that module out of the targets."
        )
    (first_out, second_out), (first_in, second_in) = (sorted((factor, size // factor)) for size in (outputs, inputs))
    yield "lokr_w1", (first_out, first_in)
    if rank < max(second_out, second_in) / 2:
        yield "lokr_w2_a", (second_out, rank)
        yield "lokr_w2_b", (rank, second_in)
    else:
        yield "lokr_w2", (second_out, second_in)


def predict_file_bytes(settings: TrainingSettings, layout: Layout) -> int:
    """Bytes of a checkpoint's tensors; the file's header (names and metadata) comes on top."""
    sizes = ((name, math.prod(shape)) for name, shape in weight_shapes(settings, layout).items())
    return sum(size * (4 if name.endswith(MAGNITUDE) else BYTES[settings.precision]) for name, size in sizes)


def group_modules(settings: TrainingSettings, layout: Layout) -> dict[str, set[str]]:
    """The modules of every group that is saved apart; UserError where two groups share one."""
    groups = {
        name: chosen(choice, settings, layout, f"adapter.groups.{name}")
        for name, choice in settings.adapter.groups.items()
    }
    seen: dict[str, str] = {}
    for name, modules in groups.items():
        for module in sorted(modules):
            if module in seen:
                raise UserError(
                    f"training.adapter.groups: {seen[module]!r} and {name!r} both hold {module}. Groups must not overlap, "
                    "or their files would not add up to the whole."
                )
            seen[module] = name
    return groups
