"""The ComfyUI file: original (BFL) module names with fused projections, the scale folded in, no alpha keys.

The original code holds query, key and value of the double blocks in one projection. Three separately trained LoRAs fuse
exactly into one of rank 3r: their A matrices on top of each other, their B matrices as blocks on the diagonal; where
all three share one A, as files of other trainers do, the rank stays r. Without alpha keys ComfyUI applies scale 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from pathlib import Path

import torch
from safetensors import safe_open

from likeness.errors import UserError
from likeness.klein.family import Layout, linear_shapes
from likeness.lora.adapter import Lora, LoraModule, check_fits
from likeness.lora.factors import widest
from likeness.lora.files import write_tensors
from likeness.lora.names import NORM_OUT, names_of
from likeness.lora.operation import narrowed

PREFIX = "diffusion_model."
_SUFFIXES = (".lora_A.weight", ".lora_B.weight")


def comfyui_keys(layout: Layout) -> list[str]:
    """List the module names that ComfyUI's loader knows for a model, without the suffix `.lora_A.weight`.

    ComfyUI takes any linear module of its own model under `diffusion_model.<name>` (comfy/lora.py,
    `model_lora_keys_unet`); the names are those of the original code.
    """
    return [PREFIX + name for name in names_of(layout)]


def comfyui_tensors(lora: Lora, layout: Layout, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """Fuse and rename a Lora's modules, in a type or in their own, rounded to it once.

    UserError where it does not fit the layout, adapts the last normalisation, or has values that the type does not hold.
    """
    check_fits(lora, layout, "the LoRA")
    if NORM_OUT in lora.modules:
        raise UserError(
            f"the LoRA adapts {NORM_OUT!r}, whose halves loaders order differently: it cannot be written for ComfyUI. "
            "Leave that module out of the targets."
        )
    shapes, tensors = linear_shapes(layout), {}
    for original, own in names_of(layout).items():
        present = [lora.modules[name].wide().folded() if name in lora.modules else None for name in own]
        if any(present):
            fused = _fuse(present, [shapes[name][0] for name in own])
            for suffix, factor in zip(_SUFFIXES, narrowed(fused, dtype, repr(original))[:2], strict=True):
                tensors[f"{PREFIX}{original}{suffix}"] = factor
    return tensors


def write_comfyui(
    path: Path,
    lora: Lora,
    layout: Layout,
    provenance: Mapping[str, str],
    dtype: torch.dtype | None = None,
    check: Callable[[Path], object] | None = None,
) -> str:
    """Write the ComfyUI file, its keys checked against `comfyui_keys`, and return its sha256.

    `check` is given the finished file before it takes its place.
    """

    def check_all(finished: Path) -> None:
        check_comfyui(finished, layout)
        if check is not None:
            check(finished)

    return write_tensors(path, comfyui_tensors(lora, layout, dtype), provenance, check=check_all)


def check_comfyui(path: Path, layout: Layout) -> int:
    """Count a file's modules; UserError unless ComfyUI knows every key, both factors are there and alpha is not."""
    known = set(comfyui_keys(layout))
    with safe_open(path, "pt") as file:
        keys = set(file.keys())
    modules = {key.removesuffix(suffix) for key in keys for suffix in _SUFFIXES if key.endswith(suffix)}
    expected = {module + suffix for module in modules for suffix in _SUFFIXES}
    wrong = sorted((keys ^ expected) | {module for module in modules if module not in known})
    if wrong or not modules:
        raise UserError(
            f"{path} is not a LoRA file that ComfyUI loads in full: {wrong[0] if wrong else 'it is empty'}. "
            f"Allowed are names such as {next(iter(sorted(known)))!r} with {_SUFFIXES[0]} and {_SUFFIXES[1]}."
        )
    return len(modules)


def _fuse(parts: Sequence[LoraModule | None], outputs: Sequence[int]) -> LoraModule:
    """One module whose change is the parts' changes on top of each other; an absent part changes nothing."""
    present = [part for part in parts if part is not None]
    if len(parts) == 1:
        return present[0]
    stored = widest(present)
    common = reduce(torch.promote_types, (part.A_RI.dtype for part in present), stored)
    parts = [part and part.cast(common) for part in parts]
    present = [part for part in parts if part is not None]
    first = present[0]
    if all(torch.equal(part.A_RI, first.A_RI) for part in present):
        rows = [
            part.B_OR if part is not None else first.B_OR.new_zeros(size, first.rank)
            for part, size in zip(parts, outputs, strict=True)
        ]
        return LoraModule(first.A_RI, torch.cat(rows), 1.0, stored)
    fused_OR = first.B_OR.new_zeros(sum(outputs), sum(part.rank for part in present))
    row = column = 0
    for part, size in zip(parts, outputs, strict=True):
        if part is not None:
            fused_OR[row : row + size, column : column + part.rank] = part.B_OR
            column += part.rank
        row += size
    return LoraModule(torch.cat([part.A_RI for part in present]), fused_OR, 1.0, stored)
