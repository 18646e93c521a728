"""Render the settings models for people and editors: config/schema.json and the key table of config/README.md."""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from likeness.config.load import NAMED_MAPS
from likeness.config.messages import plain_type
from likeness.config.project import Project
from likeness.config.subject import Subject


def render_schema() -> str:
    """JSON schema of config.yaml, which a key of its own gives away, and of one subject's file, for editors."""
    project = Project.model_json_schema()
    definitions = project.pop("$defs")
    whole = {model.__name__ for model in never_merged()}
    for name, definition in definitions.items():
        if name not in whole:
            # A lower layer may hold what this file leaves out, so that only the loader can miss a key.
            definition.pop("required", None)
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Likeness configuration",
        "$defs": {"Project": project, **definitions},
        "if": {"anyOf": [{"required": [key]} for key in Project.model_fields]},
        "then": {"$ref": "#/$defs/Project"},
        "else": {"$ref": "#/$defs/Subject"},
    }
    return json.dumps(schema, indent=1, sort_keys=True) + "\n"


def never_merged() -> Iterator[type[BaseModel]]:
    """Models whose values stand whole in one layer: items of lists, and of the named maps."""
    for name, field in Subject.model_fields.items():
        nested, suffix = nested_model(field.annotation)
        if nested is not None and (suffix == "[]" or name in NAMED_MAPS):
            yield nested


def render_keys() -> str:
    """Markdown tables of every key: of config.yaml, then of a subject."""
    parts = ["## Keys of config.yaml\n", table_of(Project, skip=frozenset({"subjects"})), "## Keys of a subject\n"]
    parts.append(table_of(Subject))
    for name, model in sections_of(Subject, ""):
        parts.append(f"### `{name}`\n\n{(model.__doc__ or '').strip()}\n")
        parts.append(table_of(model))
    return "\n".join(parts)


def sections_of(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """Nested settings models with their dotted keys, in order."""
    for name, field in model.model_fields.items():
        nested, suffix = nested_model(field.annotation)
        if nested is not None and nested.__name__ != "ModelSource":
            yield f"{prefix}{name}{suffix}", nested
            yield from sections_of(nested, f"{prefix}{name}{suffix}.")


def nested_model(annotation: Any) -> tuple[type[BaseModel] | None, str]:
    """The settings model inside a type, and how its key is written: `.<name>` in a map, `[]` in a list."""
    plain = plain_type(annotation)
    if isinstance(plain, type) and issubclass(plain, BaseModel):
        return plain, ""
    origin, arguments = typing.get_origin(plain), typing.get_args(plain)
    if origin in (dict, list, tuple) and arguments:
        inner = plain_type(arguments[-1])
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            return inner, ".<name>" if origin is dict else "[]"
    return None, ""


def table_of(model: type[BaseModel], skip: frozenset[str] = frozenset()) -> str:
    """One Markdown table: key, type, default, range, meaning."""
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        if name not in skip:
            meaning = " ".join(filter(None, [field.description or section_summary(field), limits_of(field)]))
            lines.append(f"| `{name}` | {type_of(field.annotation)} | {default_of(field)} | {escape(meaning)} |")
    return "\n".join(lines) + "\n"


def section_summary(field: FieldInfo) -> str:
    nested, _ = nested_model(field.annotation)
    return ((nested.__doc__ or "").strip().split("\n")[0] + " See below.") if nested else ""


def limits_of(field: FieldInfo) -> str:
    """Range of a number, as text."""
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    found = [
        f"{signs[key]} {value:g}"
        for item in field.metadata
        for key in signs
        if (value := getattr(item, key, None)) is not None
    ]
    return f"({', '.join(found)})" if found else ""


def type_of(annotation: Any) -> str:
    plain = plain_type(annotation)
    nested, suffix = nested_model(annotation)
    if nested is not None:
        shown = (
            "model"
            if nested.__name__ == "ModelSource"
            else {"": "section", "[]": "list", ".<name>": "named map"}[suffix]
        )
    elif typing.get_origin(plain) is typing.Literal:
        shown = " \\| ".join(f"`{value}`" for value in typing.get_args(plain))
    elif typing.get_origin(plain) in (list, tuple):
        shown = "list"
    elif typing.get_origin(plain) is dict:
        shown = "map"
    else:
        shown = {"str": "text", "int": "whole number", "float": "number", "bool": "yes or no"}.get(
            getattr(plain, "__name__", ""), "value"
        )
    optional = type(None) in typing.get_args(annotation)
    return f"{shown}, or null" if optional else shown


def default_of(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined or isinstance(value, BaseModel):
        return ""
    if isinstance(value, dict) and any(isinstance(item, BaseModel) for item in value.values()):
        return f"`{', '.join(value)}`"
    if isinstance(value, dict) and set(value) == {"source"}:
        value = value["source"]
    text = json.dumps(value, ensure_ascii=False, default=list)
    return "" if text in ('""', "[]", "{}") else f"`{escape(text)}`"


def escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
