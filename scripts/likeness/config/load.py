"""Load the configuration: layers, validation, and all errors at once with file, line and the nearest key.

Layers of a subject, lowest first: recipe, presets, the project's `defaults`, the subject. Mappings merge key by key;
lists and the named maps (variants, phases, prompts, surgery, ablation, crosstalk, probe) are replaced.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from likeness.config.craft import CraftWarning, check_craft
from likeness.config.messages import explain
from likeness.config.project import Project
from likeness.config.source import COMMAND_LINE, KeyPath, Source, read_source
from likeness.config.subject import Subject, check_name, merge_settings
from likeness.config.surgery import parents_by_key, strangers
from likeness.errors import UserError, nearest
from likeness.workflow_inputs import has_braces

NAMED_MAPS = frozenset({"variants", "phases", "prompts", "surgery", "ablation", "crosstalk", "probe"})
ALL_ELSE_DEPENDS_ON = frozenset({"recipe", "base_model"})
"""Keys without which it cannot be told whether the others are right."""
PICTURES = frozenset({"photos", "pairs", "reference", "regularisation"})
"""Keys whose paths are opened as they stand; models are looked for in the home folder by themselves."""
STAND_INS = {"trigger": "a-trigger"}
"""Values for keys without a default, so that the rest can be checked when one is missing."""
HOUSE = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Loaded:
    """A checked configuration and what deserves a second look."""

    project: Project
    warnings: tuple[CraftWarning, ...]


def load_project(folder: Path, configfiles: Sequence[Path] = (), overrides: dict[str, Any] | None = None) -> Loaded:
    """Read config/config.yaml and config/subjects/*.yaml of `folder`, or `configfiles` instead of them.

    Raises UserError that lists every mistake of every file.
    """
    errors: list[str] = []
    top, subject_sources = _read_sources(folder, configfiles, overrides or {}, errors)
    values = {key: value for key, value in top.values.items() if key not in {"subjects", "defaults"}}
    project = _validate(Project, values, [top], "", errors)
    defaults = top.below("defaults")
    subjects: dict[str, Subject] = {}
    for name, source in subject_sources.items():
        subject = _load_subject(name, source, defaults, errors)
        if subject is not None:
            subjects[name] = subject
            errors += [
                f"{_place(key, [source, defaults])}: subject {name}: {text}" for key, text in _gone(subject, folder)
            ]
    for name, key, text in strangers(subjects):
        place = _place(key, [subject_sources[name], defaults])
        errors.append(f"{place}: subject {name}: {'.'.join(key)}: {text}")
    warnings: list[CraftWarning] = []
    for name, subject in subjects.items():
        warnings += check_craft(name, subject, errors, partial(_place, sources=[subject_sources[name], defaults]))
    if errors or project is None:
        count = f"{len(errors)} mistake{'s' if len(errors) != 1 else ''} in the configuration"
        raise UserError("\n  ".join([f"{count}; nothing was started:", *errors]))
    return Loaded(project.model_copy(update={"subjects": subjects}), tuple(warnings))


def _read_sources(
    folder: Path, configfiles: Sequence[Path], overrides: dict[str, Any], errors: list[str]
) -> tuple[Source, dict[str, Source]]:
    """The top-level file (several are laid over each other, `overrides` over all) and each subject's source by name."""
    paths = list(configfiles) or [path for path in [folder / "config" / "config.yaml"] if path.exists()]
    top = Source("config/config.yaml", {})
    for path in paths:
        source, found = read_source(path, _shown(path, folder))
        errors.extend(found)
        top = Source(source.name, merge_settings(top.values, source.values), top.lines | source.lines)
    lines = top.lines | dict.fromkeys(_paths(overrides, ()), COMMAND_LINE)
    top = Source(top.name, merge_settings(top.values, overrides), lines)
    for key in ("subjects", "defaults"):
        if not isinstance(top.values.get(key) or {}, dict):
            errors.append(f"{_place((key,), [top])}: {key}: must hold keys and values; found {top.values[key]!r}")
    subjects = {name: top.below("subjects", name) for name in top.below("subjects").values}
    for name in subjects:
        errors += [f"{_place(('subjects', name), [top])}: subjects: {text}" for text in _misnamed(name)]
    origins = {name: _place(("subjects", name), [top]) for name in subjects}
    if not configfiles:
        for path in sorted((folder / "config" / "subjects").glob("*.y*ml")):
            source, found = read_source(path, _shown(path, folder))
            errors.extend(found)
            errors += [f"{source.name}: the file's name is the subject's: {text}" for text in _misnamed(path.stem)]
            if path.stem in origins:
                errors.append(
                    f"{source.name}: subject {path.stem!r} also stands in {origins[path.stem]}; keep one of them"
                )
                continue
            origins[path.stem] = source.name
            if not found:
                subjects[path.stem] = source
    return top, subjects


def _misnamed(subject: str) -> Iterator[str]:
    """Why a subject cannot be called so; nothing where it can."""
    try:
        check_name(subject)
    except ValueError as error:
        yield str(error)


def _paths(values: dict[str, Any], above: KeyPath) -> Iterator[KeyPath]:
    """The path of every key of nested mappings."""
    for key, value in values.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from _paths(value, (*above, key))


def _shown(path: Path, folder: Path) -> str:
    """A path as the user knows it: relative to the project where possible."""
    try:
        return path.resolve().relative_to(folder.resolve()).as_posix()
    except ValueError:
        return path.as_posix()


def _layer(kind: str, name: str, key: str, owner: Source, errors: list[str]) -> Source | None:
    """A recipe or preset that the project ships."""
    folder = HOUSE / "config" / kind
    names = [path.stem for path in sorted(folder.glob("*.yaml"))]
    if name not in names:
        errors.append(f"{_place((key,), [owner])}: {key}: no {kind[:-1]} {name!r}; {nearest(str(name), names)}")
        return None
    source, found = read_source(folder / f"{name}.yaml", f"config/{kind}/{name}.yaml")
    errors.extend(found)
    return source


def _load_subject(name: str, source: Source, defaults: Source, errors: list[str]) -> Subject | None:
    """Merge the layers of one subject and validate them."""
    recipe = source.values.get("recipe", defaults.values.get("recipe", "character"))
    presets = source.values.get("preset", defaults.values.get("preset", []))
    presets = presets if isinstance(presets, list) else [presets]
    layers = [_layer("recipes", recipe, "recipe", source if "recipe" in source.values else defaults, errors)]
    layers += [
        _layer("presets", preset, "preset", source if "preset" in source.values else defaults, errors)
        for preset in presets
    ]
    found = [layer for layer in layers if layer is not None]
    ordered = [*found, defaults, source]
    values: dict[str, Any] = {}
    for layer in ordered:
        for key in NAMED_MAPS & layer.values.keys():
            values.pop(key, None)
        values = merge_settings(values, {key: value for key, value in layer.values.items() if key != "about"})
    values |= {key: expand_home(values[key]) for key in PICTURES & values.keys()}
    return _validate(Subject, values, [source, defaults, *reversed(found)], f"subject {name}: ", errors)


def expand_home(value: Any) -> Any:
    """Let `~/` at the start of any text stand for the home folder, as a shell would."""
    if isinstance(value, dict):
        return {key: expand_home(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [expand_home(inner) for inner in value]
    is_path = isinstance(value, str) and value.startswith("~/")
    return os.path.expanduser(value) if is_path else value  # noqa: PTH111 (Path's own raises where nobody is at home)


def _gone(subject: Subject, folder: Path) -> Iterable[tuple[KeyPath, str]]:
    """LoRA files that a phase, surgery or a measurement starts from and that are not there, or can be no input."""
    for name, phase in subject.phases.items():
        if phase.file is not None and not (folder / phase.file).is_file():
            text = f"there is no LoRA file {phase.file}; give the path of one, previous, or scratch"
            yield ("phases", name, "init"), f"phases.{name}.init: {text}"
    for key, parent in parents_by_key(subject):
        if parent.file is not None and not (folder / parent.file).is_file():
            yield key, f"{'.'.join(key)}: there is no LoRA file {parent.file}; correct the path or put it there"
        elif parent.file is not None and has_braces(parent.file):
            yield key, f"{'.'.join(key)}: braces in {parent.file} stand for a wildcard in a workflow; rename the file"


def _validate(
    model: type[Any], values: dict[str, Any], sources: Sequence[Source], owner: str, errors: list[str]
) -> Any:
    """Validate and translate every error; the model of what is right, or None where too little is left of it.

    What two keys must agree on is asked of the rest once a wrong key is left out, so that all is told at once.
    """
    told: list[tuple[KeyPath, str]] = []
    gone: list[KeyPath] = []
    checked: Any = None
    values = deepcopy(values)  # layers are shared between subjects
    while checked is None:
        try:
            checked = model.model_validate(values)
        except ValidationError as problem:
            items = problem.errors()
            found = [explained for item in items for explained in explain(model, item)]
            told += [entry for entry in found if not _follows_from(entry, gone)]
            left_out = [_leave_out(values, item["loc"]) for item in items]
            gone += [path for path in left_out if path]
            if not all(left_out) or any(path[0] in ALL_ELSE_DEPENDS_ON for path in gone):
                break
    for path, message in sorted(told, key=lambda pair: _line(pair[0], sources)):
        errors.append(f"{_place(path, sources)}: {owner}{'.'.join(map(str, path)) or 'whole'}: {message}")
    return checked


def _leave_out(values: dict[str, Any], path: KeyPath) -> KeyPath:
    """Remove the deepest key on a path from nested mappings, or put a stand-in for an absent one; () where neither goes."""
    place: Any = values
    for depth, key in enumerate(path):
        inner = place.get(key)
        if isinstance(inner, dict) and depth + 1 < len(path) and path[depth + 1] in inner:
            place = inner
        elif key in place:
            del place[key]
            return path[: depth + 1]
        else:
            break
    if path and path[0] in STAND_INS:
        values[str(path[0])] = STAND_INS[str(path[0])]
        return path
    return ()


def _follows_from(found: tuple[KeyPath, str], gone: Iterable[KeyPath]) -> bool:
    """Whether a mistake is of a key that was left out, above or below one, or speaks of an entry that was."""
    path, text = found
    names = [re.escape(str(key[1])) for key in gone if len(key) == 2 and key[0] in NAMED_MAPS | {"trainers"}]
    named = re.search(rf"(?<![\w-])({'|'.join(names)})(?![\w-])", text) if names else None
    return named is not None or any(path[: len(key)] == key[: len(path)] for key in gone)


def _line(path: KeyPath, sources: Sequence[Source]) -> int:
    """Where an error is listed: by the line of the subject's own file."""
    return sources[0].line_of(path) or 0


def _place(path: KeyPath, sources: Sequence[Source]) -> str:
    """`file:line` of a key path, or `--config`, in the uppermost layer that holds it."""
    for length in range(len(path), 0, -1):
        for source in sources:
            if path[:length] in source.lines:
                line = source.lines[path[:length]]
                return "--config" if line == COMMAND_LINE else f"{source.name}:{line}"
    return sources[0].name
