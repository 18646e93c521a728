"""Names of backends: one registry a door, which installed packages may extend through entry points."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from importlib.metadata import entry_points
from typing import Any

from likeness.errors import UserError, nearest


def backend_names(door: str, shipped: Iterable[str]) -> list[str]:
    """Every name that a door takes, the shipped ones first; nothing is imported."""
    return [*shipped, *sorted({point.name for point in entry_points(group=f"likeness.{door}")} - set(shipped))]


def load_backend(door: str, name: str, shipped: dict[str, str]) -> Any:
    """Import the class that `name` stands for: `shipped` maps names to `module:Class`; entry points `likeness.<door>` add more.

    Raises UserError with the nearest known name.
    """
    targets = {point.name: point.value for point in entry_points(group=f"likeness.{door}")} | shipped
    if name not in targets:
        raise UserError(f"{door}.backend: unknown backend {name!r}; {nearest(name, targets)}.")
    module, _, attribute = targets[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
