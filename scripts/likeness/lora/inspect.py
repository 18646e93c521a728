"""Saying what a LoRA file is: its model family, whether it fits, its ranks, alphas and the share of norm by block."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from likeness.errors import UserError
from likeness.klein.family import linear_shapes
from likeness.lora.adapter import Lora, LoraModule
from likeness.lora.factors import energy
from likeness.lora.families import LAYOUTS, family_by_shapes, foreign_family
from likeness.lora.files import file_of, open_lora
from likeness.lora.formats import METADATA_KEY
from likeness.lora.operation import in_order
from likeness.lora.stream import MappedTensors

_LOKR_RANK = 64
_BLOCK = re.compile(r"^((?:single_)?transformer_blocks\.\d+)\.")
_OUTSIDE = "outside the blocks"


@dataclass(frozen=True)
class Block:
    """One block's modules: how many, lowest and highest rank and alpha, Frobenius norm, share of all squared norms."""

    block: str
    modules: int
    rank_low: int
    rank_high: int
    alpha_low: float
    alpha_high: float
    norm: float
    energy_share: float


@dataclass(frozen=True)
class Inspection:
    """What a file is. `family` is None where it is not known; `expected` counts the modules of the family's blocks."""

    file: str
    size_bytes: int
    format: str | None
    algorithm: str
    family: str | None
    fits_klein: bool
    reason: str
    types: list[str]
    modules: int
    matched: int
    expected: int | None
    ranks: dict[int, int]
    blocks: list[Block] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def inspect_lora(path: Path, threads: int = 1) -> Inspection:
    """Look into a LoRA file of any family; values are read for FLUX.2 only, one module at a time.

    A LoKr's norms are those of its best approximation of rank 64. UserError for what is no readable LoRA at all, and
    for NaN or infinite values.
    """
    file = file_of(path)
    tensors = MappedTensors(file)
    try:
        lora = open_lora(path, _LOKR_RANK)
    except UserError:
        found = foreign_family(tensors)
        if found is None:
            raise
        return _foreign(file, tensors, *found)
    return _inspected(file, tensors, lora, threads)


def coarse_alphas(tensors: MappedTensors) -> list[str]:
    """A warning where alpha is stored in a type that rounds it; only types are looked at."""
    if not any(key.endswith(".alpha") and tensors.type_name(key) == "BF16" for key in tensors):
        return []
    return ["alpha is stored as bfloat16, which holds whole numbers only up to 256: check it if it is larger."]


def _foreign(file: Path, tensors: MappedTensors, family: str, reason: str) -> Inspection:
    ranks = Counter(tensors.shape(key)[0] for key in tensors if re.search(r"lora[._](A|down)(\.\w+)?\.weight$", key))
    types = sorted({tensors.type_name(key) for key in tensors})
    common = (str(file), file.stat().st_size, None, _algorithm(tensors), family, False, reason, types)
    return Inspection(*common, sum(ranks.values()), 0, None, dict(sorted(ranks.items())))


def _inspected(file: Path, tensors: MappedTensors, lora: Lora, threads: int) -> Inspection:
    names = list(lora.modules)
    modules: dict[str, LoraModule] = {}
    energies: dict[str, float] = {}

    def measured(name: str) -> tuple[LoraModule, float]:
        module = lora.modules[name]
        stub = LoraModule(module.A_RI.to("meta"), module.B_OR.to("meta"), module.scale)
        return stub, energy(module, torch.float32)

    for name, (stub, value) in zip(names, in_order(measured, names, threads), strict=True):
        modules[name], energies[name] = stub, value
    shapes = {name: (module.B_OR.shape[0], module.A_RI.shape[1]) for name, module in modules.items()}
    family, reason = family_by_shapes(shapes)
    known = linear_shapes(LAYOUTS[family]) if family in LAYOUTS else {}
    in_blocks = [name for name in known if _BLOCK.match(name)]
    return Inspection(
        file=str(file),
        size_bytes=file.stat().st_size,
        format=lora.format,
        algorithm=_algorithm(tensors),
        family=family,
        fits_klein=bool(family and family.startswith("klein")),
        reason=reason if family != "flux2-dev" else "It is a LoRA of FLUX.2 [dev], 6144 wide: train again on klein.",
        types=sorted({tensors.type_name(key) for key in tensors}),
        modules=len(modules),
        matched=sum(name in shapes for name in in_blocks),
        expected=len(in_blocks) or None,
        ranks=dict(sorted(Counter(module.rank for module in modules.values()).items())),
        blocks=_blocks(modules, energies),
        warnings=_warnings(tensors, lora, modules, energies, in_blocks),
    )


def _blocks(modules: Mapping[str, LoraModule], energies: Mapping[str, float]) -> list[Block]:
    groups: dict[str, list[str]] = {}
    for name in sorted(modules, key=_natural):
        found = _BLOCK.match(name)
        groups.setdefault(found.group(1) if found else _OUTSIDE, []).append(name)
    total = sum(energies.values()) or 1.0
    blocks = []
    for block, names in groups.items():
        ranks = [modules[name].rank for name in names]
        alphas = [round(modules[name].scale * modules[name].rank, 6) for name in names]
        own = sum(energies[name] for name in names)
        limits = (min(ranks), max(ranks), min(alphas), max(alphas))
        blocks.append(Block(block, len(names), *limits, norm=own**0.5, energy_share=own / total))
    return blocks


def _natural(name: str) -> tuple[int, str, int, str]:
    kind, _, rest = name.partition(".")
    number, _, ending = rest.partition(".")
    order = {"transformer_blocks": 0, "single_transformer_blocks": 1}.get(kind, 2)
    return order, kind, int(number) if number.isdigit() else -1, ending


def _algorithm(tensors: Mapping[str, object]) -> str:
    return "LoKr" if any(".lokr_" in key for key in tensors) else "LoRA"


def _warnings(
    tensors: MappedTensors,
    lora: Lora,
    modules: Mapping[str, LoraModule],
    energies: Mapping[str, float],
    in_blocks: list[str],
) -> list[str]:
    warnings = []
    alphas = [key for key in tensors if key.endswith(".alpha")]
    warnings += coarse_alphas(tensors)
    if not alphas and METADATA_KEY not in tensors.metadata and lora.format != "peft":
        warnings.append("neither metadata nor alpha tell the scale: it is read as 1 (alpha = rank).")
    if alphas and lora.format in ("comfyui", "diffusers"):
        warnings.append("diffusers refuses this layout with alpha keys: convert it (scripts/convert_lora.py).")
    if lora.format == "bare":
        warnings.append("diffusers loads no module of a file without prefix: convert it (scripts/convert_lora.py).")
    zero = [name for name in modules if energies[name] == 0]
    if zero:
        warnings.append(f"{len(zero)} of {len(modules)} modules change nothing (first {zero[0]!r}).")
    missing = [name for name in in_blocks if name not in modules]
    if missing:
        untouched = {_BLOCK.match(name).group(1) for name in in_blocks} - {  # pyright: ignore[reportOptionalMemberAccess]
            found.group(1) for name in modules if (found := _BLOCK.match(name))
        }
        blocks = f", and {len(untouched)} blocks have none" if untouched else ""
        warnings.append(f"{len(missing)} modules of the blocks are not adapted (first {missing[0]!r}){blocks}.")
    if len({module.rank for module in modules.values()}) > 1:
        warnings.append("ranks differ between modules: tools that expect one rank may refuse it.")
    return warnings
