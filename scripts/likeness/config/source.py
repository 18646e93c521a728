"""YAML with line numbers: a mapping, and where each of its keys stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

KeyPath = tuple[str | int, ...]
COMMAND_LINE = 0
"""In place of a line: the value was given by `--config`."""
TOO_DEEP = "nests too deeply, or an alias (*name) stands within its own anchor (&name)"


@dataclass(frozen=True)
class Source:
    """One YAML file's values, and the line of each key path, COMMAND_LINE for a value from there."""

    name: str
    values: dict[str, Any]
    lines: dict[KeyPath, int] = field(default_factory=dict)

    def line_of(self, path: KeyPath) -> int | None:
        """Line of the deepest key on `path` that this file holds; None where it holds not even the first."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.lines:
                return self.lines[path[:length]]
        return None

    def below(self, *path: str) -> Source:
        """The part of this file under a key path."""
        values: Any = self.values
        for key in path:
            values = values.get(key) if isinstance(values, dict) else None
        lines = {
            key[len(path) :]: line
            for key, line in self.lines.items()
            if key[: len(path)] == path and len(key) > len(path)
        }
        return Source(self.name, values if isinstance(values, dict) else {}, lines)


def read_source(path: Path, name: str) -> tuple[Source, list[str]]:
    """Read one YAML file; the second value lists what is wrong with it, each with file and line."""
    text = ""
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except OSError as error:
        return Source(name, {}), [f"{name}: cannot be read: {error.strerror}"]
    except UnicodeDecodeError:
        return Source(name, {}), [f"{name}: is not UTF-8 text"]
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        return Source(name, {}), [f"{name}{line}: not valid YAML: {error.problem}"]
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        return Source(name, {}), [f"{name}:{line}: holds the control character {text[error.position]!r}; remove it"]
    except RecursionError:
        return Source(name, {}), [f"{name}: {TOO_DEEP}"]
    if node is None:
        return Source(name, {}), []
    if not isinstance(node, yaml.MappingNode):
        return Source(name, {}), [f"{name}:1: must hold keys and values at top level"]
    lines: dict[KeyPath, int] = {}
    errors: list[str] = []
    try:
        values = _convert(node, (), lines, errors, name)
    except RecursionError:
        return Source(name, {}), [f"{name}: {TOO_DEEP}"]
    return Source(name, values, lines), errors


def _convert(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], errors: list[str], name: str) -> Any:
    """Turn a YAML node into plain values, noting lines and refusing a key that stands twice."""
    if isinstance(node, yaml.MappingNode):
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            line = key_node.start_mark.line + 1
            if key in values:
                errors.append(
                    f"{name}:{line}: {'.'.join(map(str, (*path, key)))}: stands twice; the first is on line {lines[(*path, key)]}"
                )
            lines[(*path, key)] = line
            values[key] = _convert(value_node, (*path, key), lines, errors, name)
        return values
    if isinstance(node, yaml.SequenceNode):
        items = []
        for index, value_node in enumerate(node.value):
            lines[(*path, index)] = value_node.start_mark.line + 1
            items.append(_convert(value_node, (*path, index), lines, errors, name))
        return items
    constructor = yaml.SafeLoader("")
    try:
        return constructor.construct_object(node)
    except (yaml.YAMLError, ValueError, LookupError, OverflowError) as error:
        place = f"{name}:{node.start_mark.line + 1}: {'.'.join(map(str, path))}"
        errors.append(f"{place}: {_unreadable(node, error)}")
        return None
    finally:
        constructor.dispose()


def _unreadable(node: yaml.Node, error: Exception) -> str:
    """Why a value cannot be read as what YAML takes it for, and what to do."""
    if isinstance(error, yaml.constructor.ConstructorError):
        return f"the tag {node.tag} is not known here; write the value itself"
    kind = node.tag.rpartition(":")[2]
    return f"YAML takes {node.value!r} for a {kind}, which it is not; put it in quotes to make it text"
