"""Which modules an adapter has, with the rank and alpha of each: known before any weight is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping
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


def predict_file_bytes(settings: TrainingSettings, layout: Layout) -> int:
    """Bytes of a checkpoint's tensors; the file's header (names and metadata) comes on top."""
    shapes = linear_shapes(layout)
    values = sum(one.rank * sum(shapes[name]) for name, one in shape_adapter(settings, layout).items())
    return values * BYTES[settings.precision]


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
