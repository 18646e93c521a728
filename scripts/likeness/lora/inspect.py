"""Saying what a LoRA file is: its model family, whether it fits, its ranks, alphas and the share of norm by block."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from likeness.errors import UserError
from likeness.klein.family import linear_shapes
from likeness.lora.adapter import Lora
from likeness.lora.families import LAYOUTS, family_by_shapes, foreign_family
from likeness.lora.files import file_of, open_lora, peft_config
from likeness.lora.formats import METADATA_KEY, ModuleSize, OutlinedModules
from likeness.lora.names import is_own_name, own_names, underscored_names, without_alias
from likeness.lora.operation import in_order
from likeness.lora.stream import MappedTensors

_BLOCK = re.compile(r"^((?:single_)?transformer_blocks\.\d+)\.")
_PREFIX = re.compile(r"^(diffusion_model|base_model\.model)\.")
_OUTSIDE = "outside the blocks"
_COARSE = {"BF16": ("bfloat16", 256), "F8_E4M3": ("float8_e4m3", 16), "F8_E5M2": ("float8_e5m2", 8)}
"""Types that round whole numbers: their title, and the number up to which all of them are held."""


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

    A LoKr's ranks are those of the LoRA that it equals. UserError for what is no readable LoRA at all, and for NaN or
    infinite values.
    """
    file = file_of(path)
    tensors = MappedTensors(file)
    try:
        lora = open_lora(path)
    except UserError:
        found = foreign_family(tensors)
        if found is None:
            raise
        return _foreign(file, tensors, *found)
    return _inspected(file, tensors, lora, threads)


def coarse_alphas(tensors: MappedTensors) -> list[str]:
    """A warning where alpha is stored in a type that rounds it; only types are looked at."""
    types = {tensors.type_name(key) for key in tensors if key.endswith(".alpha")}
    return [
        f"alpha is stored as {title}, which holds whole numbers only up to {most}: check it if it is larger."
        for name, (title, most) in _COARSE.items()
        if name in types
    ]


def _foreign(file: Path, tensors: MappedTensors, family: str, reason: str) -> Inspection:
    ranks = Counter(tensors.shape(key)[0] for key in tensors if re.search(r"lora[._](A|down)(\.\w+)?\.weight$", key))
    types = sorted({tensors.type_name(key) for key in tensors})
    common = (str(file), file.stat().st_size, None, _algorithm(tensors), family, False, reason, types)
    return Inspection(*common, sum(ranks.values()), 0, None, dict(sorted(ranks.items())))


def _inspected(file: Path, tensors: MappedTensors, lora: Lora, threads: int) -> Inspection:
    assert isinstance(lora.modules, OutlinedModules)
    names = list(lora.modules)
    sizes = dict(zip(names, in_order(lora.modules.size_of, names, threads), strict=True))
    shapes = {name: (size.outputs, size.inputs) for name, size in sizes.items()}
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
        modules=len(sizes),
        matched=sum(name in shapes for name in in_blocks),
        expected=len(in_blocks) or None,
        ranks=dict(sorted(Counter(size.rank for size in sizes.values()).items())),
        blocks=_blocks(sizes),
        warnings=_warnings(tensors, lora, sizes, in_blocks),
    )


def _blocks(sizes: Mapping[str, ModuleSize]) -> list[Block]:
    groups: dict[str, list[str]] = {}
    for name in sorted(sizes, key=_natural):
        found = _BLOCK.match(name)
        groups.setdefault(found.group(1) if found else _OUTSIDE, []).append(name)
    total = sum(size.energy for size in sizes.values()) or 1.0
    blocks = []
    for block, names in groups.items():
        ranks = [sizes[name].rank for name in names]
        alphas = [round(sizes[name].scale * sizes[name].rank, 6) for name in names]
        own = sum(sizes[name].energy for name in names)
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
    sizes: Mapping[str, ModuleSize],
    in_blocks: list[str],
) -> list[str]:
    warnings = [*coarse_alphas(tensors), *_untold_scale(tensors, lora), *_refused_by_diffusers(tensors, lora)]
    bytes_of_one = {tensors.type_name(key) for key in tensors} & {"F8_E4M3", "F8_E5M2"}
    if bytes_of_one:
        warnings.append(f"values are stored in 8 bits ({', '.join(sorted(bytes_of_one))}): they are read as bfloat16.")
    zero = [name for name, size in sizes.items() if size.energy == 0]
    if zero:
        warnings.append(f"{len(zero)} of {len(sizes)} modules change nothing (first {zero[0]!r}).")
    missing = [name for name in in_blocks if name not in sizes]
    if missing:
        untouched = {_BLOCK.match(name).group(1) for name in in_blocks} - {  # pyright: ignore[reportOptionalMemberAccess]
            found.group(1) for name in sizes if (found := _BLOCK.match(name))
        }
        blocks = f", and {len(untouched)} blocks have none" if untouched else ""
        warnings.append(f"{len(missing)} modules of the blocks are not adapted (first {missing[0]!r}){blocks}.")
    if len({size.rank for size in sizes.values()}) > 1:
        warnings.append("ranks differ between modules: tools that expect one rank may refuse it.")
    return warnings


def _untold_scale(tensors: MappedTensors, lora: Lora) -> list[str]:
    """A warning where nothing says the scale."""
    if any(key.endswith(".alpha") for key in tensors) or METADATA_KEY in tensors.metadata:
        return []
    if peft_config(tensors.path, tensors) is not None:
        return []
    also = "no adapter_config.json lies beside the file, and " if lora.format == "peft" else ""
    return [f"{also}neither metadata nor alpha tell the scale: it is read as 1 (alpha = rank)."]


def _refused_by_diffusers(tensors: MappedTensors, lora: Lora) -> list[str]:
    """A warning where diffusers' loader takes nothing of the file, and why.

    Source: diffusers Flux2LoraLoaderMixin.lora_state_dict, which has one converter for kohya's factors, one for names
    under `diffusion_model.`, and three for LoKr.
    """
    keys = list(tensors)
    names = {key.partition(".lora_" if ".lora_" in key else ".lokr_")[0] for key in keys if not key.endswith(".alpha")}
    alphas, converted = any(key.endswith(".alpha") for key in keys), lora.format in ("comfyui", "peft")
    why = ""
    if _algorithm(tensors) == "LoKr":
        if converted and any(is_own_name(without_alias(_PREFIX.sub("", name))) for name in names):
            why = "reads a LoKr under this prefix by original names only"
        elif lora.format == "kohya" and not all(
            re.match(r"lycoris_(single_)?transformer_blocks_", name) for name in names
        ):
            why = "reads no LoKr of these names"
        elif alphas and lora.format == "diffusers":
            why = "refuses this layout with alpha keys"
    elif any(".lora_down.weight" in key for key in keys):
        if not all(own_names(underscored_names().get(name.removeprefix("lora_unet_"), "")) for name in names):
            why = (
                "loads no module of a file with lora_down whose names are not kohya's, lora_unet_ and the original ones"
            )
    elif lora.format in ("bare", "kohya"):
        why = "loads no module of a file without prefix" if lora.format == "bare" else "loads no module of these names"
    elif alphas:
        why = "refuses this layout with alpha keys"
    return [f"diffusers {why}: convert it (scripts/convert_lora.py)."] if why else []
