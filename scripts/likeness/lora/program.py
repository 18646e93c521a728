"""What the programs for LoRA files share: flags, reading inputs, writing and verifying a result, and how it is told."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from likeness.errors import UserError, nearest
from likeness.klein.family import KNOWN_LAYOUTS, Layout, layout_of
from likeness.lora.adapter import Lora, LoraModule
from likeness.lora.comfyui import write_comfyui
from likeness.lora.families import family_by_shapes
from likeness.lora.files import compare_loaded, file_of, open_lora, sha256_of
from likeness.lora.inspect import coarse_alphas
from likeness.lora.operation import (
    Operated,
    Operation,
    Written,
    changes_something,
    check_change,
    loss_warnings,
    write_operation,
)
from likeness.lora.stream import MappedTensors
from likeness.program import finite

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def lora_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the program's docstring, with the flags of every program that writes a LoRA file."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.add_argument(
        "--type", choices=sorted(TYPES), default=None, help="type of the written file; default: the input's"
    )
    parser.add_argument("--base", default=None, help="base model to verify against, where it is not klein 4B or 9B")
    parser.add_argument(
        "--lokr-rank", type=int, default=None, help="rank to which a LoKr of higher rank is approximated"
    )
    parser.add_argument(
        "--threads", type=int, default=2, help="modules computed at once; the bytes do not depend on it"
    )
    return parser


def weighted_path(text: str) -> tuple[Path, float]:
    """Read `A.safetensors:0.7` as a path and a weight; without a weight it is 1."""
    name, colon, weight = text.rpartition(":")
    if not colon:
        return Path(text), 1.0
    try:
        return Path(name), finite(weight)
    except ValueError:
        raise UserError(f"{text!r}: {weight!r} is no weight. Write FILE:WEIGHT, for example {name}:0.7") from None


def write_result(
    args: argparse.Namespace, output: Path, operation: Operation, parents: Sequence[Path]
) -> dict[str, Any]:
    """Write an operation's result, load it back through diffusers before it takes its place, and return what is to be told.

    Where it does not arrive as it is, an older file of that name stays.
    """
    verified: list[int | None] = []
    check = lambda path: verified.append(count_loaded(path, args.base))  # noqa: E731
    written = write_operation(output, operation, hashes_of(parents), TYPES.get(args.type), args.threads, check)
    return told(output, operation.about, written, verified[0], parents)


def write_comfyui_result(args: argparse.Namespace, output: Path, lora: Lora, parent: Path) -> dict[str, Any]:
    """The same for a LoRA that is written as it is in ComfyUI's layout."""
    about, dtype = {"operation": "convert"}, TYPES.get(args.type)
    verified: list[int | None] = []
    lost: list[str] = []

    def check(path: Path) -> None:
        back = open_lora(path).modules
        kept = {name: changes_something(back[name]) for name in lora.modules}
        lost.extend(name for name, changes in kept.items() if not changes and changes_something(lora.modules[name]))
        check_change(path, [name for name, changes in kept.items() if changes], lost, dtype)
        verified.append(count_loaded(path, args.base))

    layout = layout_to_write(args.base, lora)
    sha256 = write_comfyui(output, lora, layout, {**about, **hashes_of([parent])}, dtype, check)
    written = Written(sha256, copied(lora).rows(), loss_warnings(lost, dtype))
    return told(output, about, written, verified[0], [parent])


def hashes_of(parents: Sequence[Path]) -> dict[str, str]:
    """The files that a result is made of, for its metadata."""
    return {"parents": json.dumps([sha256_of(file_of(parent)) for parent in parents])}


def count_loaded(path: Path, base: str | None) -> int | None:
    """How many modules diffusers loads of a result, which are all; None where its base model is not known.

    UserError where not all arrive as they are in the file.
    """
    layout = layout_for(base, open_lora(path))
    return compare_loaded(path, layout)[0] if layout is not None else None


def told(
    output: Path, about: Mapping[str, str], written: Written, verified: int | None, parents: Sequence[Path]
) -> dict[str, Any]:
    """The result of a program: file, hash, settings, how many modules diffusers loads, and the table of modules."""
    found = {"file": str(output), "sha256": written.sha256, "size_bytes": output.stat().st_size, **about}
    warnings = [f"{parent}: {text}" for parent in parents for text in coarse_alphas(MappedTensors(file_of(parent)))]
    found |= {"verified_modules": verified, "modules": written.rows}
    return {**found, "warnings": [*warnings, *written.warnings]}


def layout_for(base: str | None, lora: Lora) -> Any:
    """What a LoRA is verified against: the base model if named, else the known layout that it fits, else nothing."""
    if base:
        from likeness.klein.load import BaseModel

        return BaseModel(base)
    return known_layout_of(lora)


def known_layout_of(lora: Lora) -> Layout | None:
    """The layout, klein 4B or 9B, that all of a LoRA's modules fit; None for any other."""
    shapes = {name: (module.B_OR.shape[0], module.A_RI.shape[1]) for name, module in lora.modules.items()}
    family, _ = family_by_shapes(shapes)
    return KNOWN_LAYOUTS.get(family or "")


def layout_to_write(base: str | None, lora: Lora) -> Layout:
    """The layout whose original names a LoRA is written in; UserError where it is not known."""
    if base:
        from likeness.klein.load import BaseModel

        return layout_of(BaseModel(base).config_of("transformer"))
    layout = known_layout_of(lora)
    if layout is None:
        raise UserError(
            "the LoRA fits neither klein 4B nor 9B: name its base model with --base. " + nearest("", KNOWN_LAYOUTS)
        )
    return layout


def show(found: Mapping[str, Any], as_json: bool) -> None:
    """Print a result as JSON or as text with its table; warnings go to the error stream as well."""
    for warning in found.get("warnings", []):
        print(f"warning: {warning}", file=sys.stderr)
    if as_json:
        print(json.dumps(found, sort_keys=True))
        return
    for key, value in found.items():
        if key not in ("modules", "blocks", "warnings") and value not in (None, "", []):
            print(f"{key.replace('_', ' '):18} {value}")
    if found.get("verified_modules", 0) is None:
        print("verified modules   not checked: the base model is not known; name it with --base")
    for key in ("blocks", "modules"):
        if isinstance(found.get(key), list) and found[key]:
            print_table(found[key])


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows of the same columns, numbers to the right."""
    cells = [[_cell(value) for value in row.values()] for row in rows]
    head = [name.replace("_", " ") for name in rows[0]]
    widths = [max(len(line[column]) for line in [head, *cells]) for column in range(len(head))]
    for line in [head, *cells]:
        print(
            "  ".join(
                [
                    line[0].ljust(widths[0]),
                    *(text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True)),
                ]
            )
        )


def copied(lora: Lora) -> Operation:
    """The operation that changes nothing: every module as it is."""

    def operate(name: str) -> Operated:
        module: LoraModule = lora.modules[name]
        return Operated(module, {"rank": module.rank, "scale": module.scale})

    return Operation(sorted(lora.modules), operate, {"operation": "convert"})


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
