"""Say in plain words what pydantic found wrong, at which key, with the nearest key that there is."""

from __future__ import annotations

import typing
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel

from likeness.config.source import KeyPath
from likeness.errors import nearest


def explain(model: type[BaseModel], item: Any) -> Iterable[tuple[KeyPath, str]]:
    """Say in plain words what one pydantic error means, at which key."""
    path: KeyPath = tuple(part for part in item["loc"] if part != "[key]")
    kind, found = item["type"], item.get("input")
    if kind == "extra_forbidden":
        parent = model_at(model, path[:-1])
        names = parent.model_fields if parent else {}
        yield path, f"unknown key; {nearest(str(path[-1]), names)}"
    elif kind == "missing":
        yield path, "missing; it has no default"
    elif kind == "value_error" and not path:
        for part in str(item["msg"]).removeprefix("Value error, ").split("\n"):
            key, colon, rest = part.partition(": ")
            yield (tuple(key.split(".")), rest) if colon and " " not in key else ((), part)
    else:
        message = str(item["msg"]).removeprefix("Value error, ")
        shown = f"; found {found!r}" if not isinstance(found, (dict, list)) else ""
        yield path, f"{message[:1].lower()}{message[1:]}{shown}"


def model_at(model: type[BaseModel], path: KeyPath) -> type[BaseModel] | None:
    """The settings model that a key path leads to."""
    current: Any = model
    for part in path:
        if isinstance(current, type) and issubclass(current, BaseModel):
            field = current.model_fields.get(str(part))
            current = field.annotation if field else None
        else:
            arguments = typing.get_args(current)
            current = arguments[-1] if arguments else None
        current = plain_type(current)
    return current if isinstance(current, type) and issubclass(current, BaseModel) else None


def plain_type(annotation: Any) -> Any:
    """Strip Annotated and Optional from a type."""
    while True:
        arguments = typing.get_args(annotation)
        if hasattr(annotation, "__metadata__"):
            annotation = arguments[0]
        elif type(None) in arguments:
            annotation = next(argument for argument in arguments if argument is not type(None))
        else:
            return annotation
