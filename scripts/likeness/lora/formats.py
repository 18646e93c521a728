"""Reading LoRA files of any trainer: which format the keys are in, and what they mean.

Six layouts are known: diffusers, ComfyUI/BFL (fused projections), diffusers' names under `diffusion_model.`, PEFT,
kohya and bare module names (DiffSynth); LoKr in any of them is read as a LoRA. They differ in prefix, in the suffix of
the factors, and in where the scale is kept: the adapter metadata, alpha tensors, or nowhere (then it is 1). What cannot
be read exactly is refused by name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch

from likeness.errors import UserError
from likeness.lora.adapter import Lora, LoraModule, widened
from likeness.lora.factors import energy
from likeness.lora.lokr import SIDES, is_lokr, lokr_module, lokr_size
from likeness.lora.names import NORM_OUT, is_own_name, own_names, strange_prefix, underscored_names, without_alias

METADATA_KEY = "lora_adapter_metadata"
"""Where diffusers keeps the adapter's config (JSON, keys prefixed by 'transformer.') in a file's metadata."""

_PREFIXES = {
    "transformer.": "diffusers",
    "diffusion_model.": "comfyui",
    "base_model.model.": "peft",
    "lora_unet_": "kohya",
    "lora_transformer_": "kohya",
    "lycoris_": "kohya",
}
_SUFFIX = re.compile(r"^(?P<name>.+?)\.(?P<side>lora_A|lora_B|lora_down|lora_up|lora\.down|lora\.up)(\.\w+)?\.weight$")
_SIDES: dict[str, str] = {
    "lora_A": "A",
    "lora_down": "A",
    "lora.down": "A",
    "lora_B": "B",
    "lora_up": "B",
    "lora.up": "B",
}
_LOKR = re.compile(rf"^(?P<name>.+?)\.lokr_(?P<side>{'|'.join(sorted(SIDES, reverse=True))})$")
_FOREIGN_ALGORITHMS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_": "LoHa",
    "oft_": "OFT",
    "lokr_t2": "LoKr of a convolution",
}
_FLUX1_NAMES = ("proj_mlp", "norm1.linear", "img_mod.lin", "modulation.lin", "vector_in", "norm1_linear")


class Factor(NamedTuple):
    """One tensor of a file: its format, its module's name without prefix (dots), and what it is: A, B or alpha."""

    format: str
    name: str
    side: str


class ModuleSize(NamedTuple):
    """A module's outputs and inputs, rank and scale, and the squared Frobenius norm of its change, scale included."""

    outputs: int
    inputs: int
    rank: int
    scale: float
    energy: float


def size_of_module(module: LoraModule) -> ModuleSize:
    """The size of a module in memory, its norm from products in float32."""
    return ModuleSize(
        module.B_OR.shape[0], module.A_RI.shape[1], module.rank, module.scale, energy(module, torch.float32)
    )


def parse_lora(
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
    where: str,
    config: Mapping[str, Any] | None = None,
) -> Lora:
    """Turn a file's tensors and metadata into a Lora, split into diffusers' modules, with every scale resolved.

    `where` names the file in errors; `config` is PEFT's adapter_config.json where there is one. Raises UserError for an
    empty file, NaN or infinite values, two formats at once, DoRA and other algorithms, halves that are missing or
    do not fit each other, contradicting scales, and modules that FLUX.2 does not have.
    """
    return outline_lora(tensors, metadata, where, config).loaded()


def outline_lora(
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
    where: str,
    config: Mapping[str, Any] | None = None,
    lokr_rank: int | None = None,
) -> Lora:
    """The same Lora with modules that are made when asked for, each time anew: only keys are looked at here.

    `lokr_rank` is the rank to which a LoKr is approximated where its own is higher. Errors about keys are raised at
    once, errors about values and shapes when the module is asked for.
    """
    if not tensors:
        raise UserError(f"{where} holds no tensors.")
    _refuse_other_algorithms(tensors, where)
    sides: dict[str, dict[str, str]] = {}
    formats: set[str] = set()
    for key in tensors:
        factor = _factor(key, where)
        formats.add(factor.format)
        if factor.side in sides.setdefault(factor.name, {}):
            raise UserError(f"{where} holds {factor.side} of {factor.name!r} twice: {key!r} is the second.")
        sides[factor.name][factor.side] = key
    if len(formats) > 1:
        raise UserError(f"{where} mixes two formats ({' and '.join(sorted(formats))}): save each LoRA to its own file.")
    for name, keys in sides.items():
        if set(keys) - {"alpha"} != {"A", "B"} and not is_lokr(keys):
            raise UserError(
                f"{where}: {name!r} has only {' and '.join(sorted(keys))}: one factor of the LoRA is missing."
            )
    modules = OutlinedModules(tensors, sides, _Scales(metadata, config, where), where, lokr_rank)
    return Lora(modules, dict(metadata), formats.pop())


class OutlinedModules(Mapping[str, LoraModule]):
    """Modules by diffusers name; `sides` maps each of the file's modules to its keys."""

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        sides: Mapping[str, Mapping[str, str]],
        scales: _Scales,
        where: str,
        lokr_rank: int | None,
    ) -> None:
        self.tensors, self.sides, self.scales, self.where = tensors, sides, scales, where
        self.lokr_rank = lokr_rank
        of_file: dict[str, str] = {}
        for name in sides:
            for own in own_modules(name, where):
                if own in of_file:
                    raise UserError(
                        f"{where} mixes two formats: {name!r} and {of_file[own]!r} are one module, {own!r}. "
                        "Save each LoRA to its own file."
                    )
                of_file[own] = name
        self.of_file = dict(sorted(of_file.items()))

    def __getitem__(self, own: str) -> LoraModule:
        name = self.of_file[own]
        parts = self._parts(name)
        if is_lokr(parts):
            module = lokr_module(parts, self.lokr_rank, f"{self.where}: {name!r}")
        else:
            module = _module(name, parts, self.scales, self.where)
        return _split(name, module, self.where)[own]

    def _parts(self, name: str) -> dict[str, torch.Tensor]:
        parts = {side: self.tensors[key] for side, key in self.sides[name].items()}
        for side, key in self.sides[name].items():
            _check_values(parts[side], key, side, self.where)
        return parts

    def size_of(self, own: str) -> ModuleSize:
        """A module's size; of a LoKr exact at any rank."""
        name = self.of_file[own]
        if not is_lokr(self.sides[name]):
            return size_of_module(self[own])
        where = f"{self.where}: {name!r}"
        rank, scale, squares_O, inputs = lokr_size(self._parts(name), where)
        of_own = own_modules(name, self.where)
        if len(squares_O) % len(of_own):
            raise UserError(f"{where} has {len(squares_O)} outputs, which do not split into three.")
        squares_O = squares_O.chunk(len(of_own))[of_own.index(own)]
        return ModuleSize(len(squares_O), inputs, rank, scale, float(squares_O.sum()))

    def __iter__(self) -> Iterator[str]:
        return iter(self.of_file)

    def __len__(self) -> int:
        return len(self.of_file)


def _factor(key: str, where: str) -> Factor:
    prefix = next((prefix for prefix in _PREFIXES if key.startswith(prefix)), "")
    format_name = _PREFIXES.get(prefix, "bare")
    rest = key.removeprefix(prefix)
    if rest.endswith(".alpha"):
        name, side = rest.removesuffix(".alpha"), "alpha"
    else:
        match = _SUFFIX.match(rest) or _LOKR.match(rest)
        if not match:
            raise UserError(
                f"{where}: {key!r} is not a LoRA weight. Allowed are lora_A/lora_B or lora_down/lora_up weights "
                "and alpha."
            )
        name, side = match["name"], _SIDES.get(match["side"], match["side"])
    if format_name == "kohya":
        name = underscored_names().get(name, name)
    elif format_name in ("comfyui", "peft"):
        name = without_alias(name)
    if not is_own_name(name) and own_names(name) is None:
        raise UserError(_unknown_module(key, name, where))
    return Factor(format_name, name, side)


def _unknown_module(key: str, name: str, where: str) -> str:
    if key.startswith(("text_encoder", "lora_te")):
        return f"{where}: {key!r} belongs to a text encoder; FLUX.2 [klein] LoRAs adapt the transformer only."
    separate_in_single = name.startswith("single_") and re.search(r"to_[qkv]$", name)
    if separate_in_single or any(part in key for part in _FLUX1_NAMES):
        return f"{where}: {key!r} is a module of FLUX.1, not of FLUX.2 [klein]: it is a LoRA of another model family."
    prefix = strange_prefix(key[: key.rindex(name) + len(name)]) if name in key else None
    if prefix:
        return (
            f"{where}: {key!r} begins with the unknown prefix {prefix!r}; the name behind it is FLUX.2's. Known are "
            f"{', '.join(_PREFIXES)} and none: rename the keys, or save the LoRA in another format."
        )
    return f"{where}: {key!r} is no module of FLUX.2 [klein]: it is a LoRA of another model family."


def _refuse_other_algorithms(tensors: Mapping[str, torch.Tensor], where: str) -> None:
    for key in tensors:
        for mark, algorithm in _FOREIGN_ALGORITHMS.items():
            if mark in key:
                raise UserError(
                    f"{where} is a {algorithm} ({key!r}), which cannot be read as a LoRA without changing what it "
                    "does. "
                    "Train or export it as a plain LoRA."
                )


def _check_values(tensor: torch.Tensor, key: str, side: str, where: str) -> None:
    if side == "alpha" and tensor.numel() != 1:
        raise UserError(f"{where}: {key!r} has the shape {tuple(tensor.shape)}; an alpha is one number.")
    if side != "alpha" and not tensor.is_floating_point():
        raise UserError(f"{where}: {key!r} has the type {tensor.dtype}; only floating-point LoRAs can be read.")
    # The extremes are many times faster to find than isfinite of each value is, and NaN spreads into both.
    if tensor.numel() and not torch.isfinite(torch.stack(torch.aminmax(tensor))).all():
        raise UserError(
            f"{where}: {key!r} holds NaN or infinite values: the training diverged. Take an earlier checkpoint."
        )


class _Scales:
    """Resolves a module's scale: adapter metadata, else its alpha tensor, else 1."""

    def __init__(self, metadata: Mapping[str, str], config: Mapping[str, Any] | None, where: str) -> None:
        self.where = where
        if config is not None and not isinstance(config, Mapping):
            raise UserError(f"{where}: the adapter_config.json beside it is not a JSON object. Save the LoRA again.")
        self.config = dict(config) if config else self._from_metadata(metadata)
        self._check_config()
        if self.config.get("use_dora"):
            raise UserError(f"{where} is a DoRA (use_dora in its metadata), which cannot be read as a LoRA.")

    def _from_metadata(self, metadata: Mapping[str, str]) -> dict[str, Any]:
        if METADATA_KEY not in metadata:
            return {}
        try:
            found = json.loads(metadata[METADATA_KEY])
            return {key.removeprefix("transformer."): value for key, value in found.items()}
        except (ValueError, AttributeError):
            raise UserError(
                f"{self.where}: the metadata {METADATA_KEY!r} is not a JSON object. Save the LoRA again."
            ) from None

    def _check_config(self) -> None:
        """UserError unless alpha is a number everywhere, and patterns are patterns."""
        patterns = self.config.get("alpha_pattern") or {}
        alphas = {"lora_alpha": self.config["lora_alpha"]} if self.config.get("lora_alpha") is not None else {}
        if isinstance(patterns, Mapping):
            alphas |= {f"alpha_pattern {pattern!r}": alpha for pattern, alpha in patterns.items()}
        wrong = [f"{key} is {alpha!r}, no number" for key, alpha in alphas.items() if not _is_finite(alpha)]
        if not isinstance(patterns, Mapping):
            wrong.append(f"alpha_pattern is {patterns!r}, no mapping of names to numbers")
        for pattern in patterns if isinstance(patterns, Mapping) else ():
            try:
                re.compile(pattern)
            except re.error as error:
                wrong.append(f"alpha_pattern {pattern!r} is no regular expression ({error})")
        if wrong:
            raise UserError(
                f"{self.where}: its adapter config cannot be read: {'; '.join(wrong)}. Save the LoRA again."
            )

    def of(self, name: str, rank: int, alpha: torch.Tensor | None) -> float:
        """Scale of a module; UserError where metadata and alpha tensor contradict each other."""
        by_metadata = self._by_metadata(name, rank)
        by_alpha = None if alpha is None else float(alpha) / rank
        if by_metadata is not None and by_alpha is not None and abs(by_metadata - by_alpha) > 1e-6 * abs(by_alpha):
            raise UserError(
                f"{self.where}: the scale of {name!r} is {by_metadata:g} by the metadata and {by_alpha:g} by its "
                "alpha: "
                "remove the one that is wrong."
            )
        return next((scale for scale in (by_metadata, by_alpha) if scale is not None), 1.0)

    def _by_metadata(self, name: str, rank: int) -> float | None:
        if self.config.get("lora_alpha") is None:
            return None
        alpha = float(_by_pattern(self.config.get("alpha_pattern"), name, self.config["lora_alpha"]))
        return alpha / rank**0.5 if self.config.get("use_rslora") else alpha / rank


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _by_pattern(patterns: Mapping[str, Any] | None, name: str, default: Any) -> Any:
    """PEFT's rule: a key is a regular expression that must match a module's name in full or after a dot."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return default


def _module(name: str, parts: Mapping[str, torch.Tensor], scales: _Scales, where: str) -> LoraModule:
    down_RI, up_OR = parts["A"], parts["B"]
    if down_RI.ndim != 2 or up_OR.ndim != 2 or down_RI.shape[0] != up_OR.shape[1] or down_RI.shape[0] == 0:
        raise UserError(
            f"{where}: the factors of {name!r} have the shapes {tuple(down_RI.shape)} and {tuple(up_OR.shape)}; "
            "expected are (rank, inputs) and (outputs, rank) of one rank above 0."
        )
    return LoraModule(*widened(down_RI, up_OR), scales.of(name, down_RI.shape[0], parts.get("alpha")))


def own_modules(name: str, where: str) -> tuple[str, ...]:
    """The diffusers modules that a module of a file stands for; UserError for the last normalisation's other name."""
    own = own_names(name) or (name,)
    if name not in own and own[0] == NORM_OUT:
        raise UserError(f"{where}: {name!r} cannot be read safely, as loaders disagree about the order of its halves.")
    return own


def _split(name: str, module: LoraModule, where: str) -> dict[str, LoraModule]:
    """The diffusers modules of one module of the file: itself, or query, key and value of a fused one, exactly."""
    own = own_modules(name, where)
    if len(own) == 1:
        return {own[0]: module}
    if module.B_OR.shape[0] % 3:
        raise UserError(
            f"{where}: the fused {name!r} has {module.B_OR.shape[0]} outputs, which do not split into three."
        )
    third, rank = module.B_OR.shape[0] // 3, module.rank
    blocks = [module.B_OR[index * third : (index + 1) * third] for index in range(3)]
    if rank % 3 == 0 and _is_block_diagonal(blocks, rank // 3):
        columns = [slice(index * rank // 3, (index + 1) * rank // 3) for index in range(3)]
        parts = [
            module._replace(A_RI=module.A_RI[columns[index]].clone(), B_OR=blocks[index][:, columns[index]].clone())
            for index in range(3)
        ]
    else:
        parts = [module._replace(A_RI=module.A_RI.clone(), B_OR=block.clone()) for block in blocks]
    return dict(zip(own, parts, strict=True))


def _is_block_diagonal(blocks: list[torch.Tensor], rank: int) -> bool:
    """Whether each third of the outputs reads its own third of the rank only, as separately trained projections do."""
    for index, block_OR in enumerate(blocks):
        others = torch.ones(block_OR.shape[1], dtype=torch.bool)
        others[index * rank : (index + 1) * rank] = False
        if block_OR[:, others].any():
            return False
    return True
