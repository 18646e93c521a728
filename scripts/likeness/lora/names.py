"""Module names: diffusers' beside those of the original code, which ComfyUI and several trainers use.

The original code fuses query, key and value of the double blocks into one projection, so one original name can stand
for three modules of diffusers, in that order. Source: diffusers convert_flux2_transformer_checkpoint_to_diffusers.
"""

from __future__ import annotations

import re
from functools import cache

from likeness.klein.family import Layout

NORM_OUT = "norm_out.linear"
"""Its output's two halves are swapped between the two layouts, and loaders disagree about it in LoRA files."""

_ALIAS = "sformer_blocks."
"""What some exports call the double blocks; diffusers' loader takes it where it converts names."""

_GLOBAL = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_guidance_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_guidance_embed.timestep_embedder.linear_2",
    "double_stream_modulation_img.lin": "double_stream_modulation_img.linear",
    "double_stream_modulation_txt.lin": "double_stream_modulation_txt.linear",
    "single_stream_modulation.lin": "single_stream_modulation.linear",
    "final_layer.adaLN_modulation.1": NORM_OUT,
    "final_layer.linear": "proj_out",
}
_DOUBLE = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn.proj": ("attn.to_out.0",),
    "img_mlp.0": ("ff.linear_in",),
    "img_mlp.2": ("ff.linear_out",),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn.proj": ("attn.to_add_out",),
    "txt_mlp.0": ("ff_context.linear_in",),
    "txt_mlp.2": ("ff_context.linear_out",),
}
_SINGLE = {"linear1": "attn.to_qkv_mlp_proj", "linear2": "attn.to_out"}
_BLOCKS = re.compile(r"(double|single|transformer|single_transformer)_blocks\.")
_MOST_BLOCKS = 100


@cache
def original_names(num_double: int, num_single: int) -> dict[str, tuple[str, ...]]:
    """Map every original module name of a model with so many blocks to its diffusers modules (a fused one: three)."""
    names: dict[str, tuple[str, ...]] = {original: (own,) for original, own in _GLOBAL.items()}
    for index in range(num_double):
        for original, endings in _DOUBLE.items():
            names[f"double_blocks.{index}.{original}"] = tuple(f"transformer_blocks.{index}.{e}" for e in endings)
    for index in range(num_single):
        for original, ending in _SINGLE.items():
            names[f"single_blocks.{index}.{original}"] = (f"single_transformer_blocks.{index}.{ending}",)
    return names


def names_of(layout: Layout) -> dict[str, tuple[str, ...]]:
    """`original_names` of a layout."""
    return original_names(layout.num_double, layout.num_single)


def own_names(original: str) -> tuple[str, ...] | None:
    """Diffusers modules of an original name, with dots; None where it is unknown."""
    return original_names(_MOST_BLOCKS, _MOST_BLOCKS).get(original)


def without_alias(name: str) -> str:
    """A diffusers name as the model has it, where an export wrote the double blocks' other name."""
    return f"transformer_blocks.{name.removeprefix(_ALIAS)}" if name.startswith(_ALIAS) else name


def is_own_name(name: str) -> bool:
    """Whether diffusers' model could have a linear module of this name, with any number of blocks."""
    general = re.sub(r"^((?:single_)?transformer_blocks)\.\d+\.", r"\1.0.", name)
    return any(general in group for group in original_names(1, 1).values())


def strange_prefix(name: str) -> str | None:
    """What stands before a block's module of either naming, with dots or underscores; None where there is no such module."""
    for separator in (".", "_"):
        for found in re.finditer(re.escape(separator), name):
            rest = name[found.end() :]
            rest = rest if separator == "." else underscored_names().get(rest, rest)
            if _BLOCKS.match(rest) and (is_own_name(rest) or own_names(rest)):
                return name[: found.end()]
    return None


@cache
def underscored_names() -> dict[str, str]:
    """Map names as kohya writes them (underscores for dots, both name systems) to names with dots."""
    names = original_names(_MOST_BLOCKS, _MOST_BLOCKS)
    dotted = [*names, *(own for group in names.values() for own in group)]
    return {name.replace(".", "_"): name for name in dotted}
