"""Which model a LoRA file belongs to, by the names and shapes in it, and why another model's cannot fit klein.

FLUX.1 shares many names with FLUX.2, so names alone do not tell: its MLPs have no gate and are 4 widths wide where
FLUX.2's are 6 with the gate, and its single blocks' first projection is 7 widths where FLUX.2's is 9.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from likeness.klein.family import KNOWN_LAYOUTS, Layout, linear_shapes

FLUX2_DEV = Layout("flux2-dev", num_double=8, num_single=48, width=6144, joint_attention_dim=15360)
LAYOUTS = {**KNOWN_LAYOUTS, FLUX2_DEV.name: FLUX2_DEV}

QWEN_IMAGE = "qwen-image"
FLUX1 = "flux1"
FLUX1_REASON = (
    "FLUX.1 is 3072 wide with 19 double and 38 single blocks and MLPs of 4 widths; FLUX.2 [klein] 9B is 4096 wide with "
    "8 and 24 blocks, so every matrix has another shape (3072 against 4096), and klein 4B, though 3072 wide too, has 5 "
    "and 20 blocks with gated MLPs of 6 widths. No conversion exists: train again on klein."
)

_FLUX1_KEYS = (
    r"proj_mlp|proj_out\.lora.*single_transformer|norm1(_context)?\.linear|norm1_linear|img_mod|txt_mod|"
    r"single_(transformer_)?blocks[._]\d+[._](modulation|norm[._]linear|attn[._]to_[qkv][._]|proj_out)|"
    r"ff(_context)?[._]net[._]|vector_in|guidance_in"
)
_OTHERS = (
    (QWEN_IMAGE, "Qwen-Image", r"transformer_blocks[._]\d+[._](img|txt)_(mlp[._]net|mod[._]1)"),
    (
        "sdxl",
        "Stable Diffusion XL",
        r"lora_unet_(input|output)_blocks_\d+_\d+|lora_te2_|down_blocks\.\d+.*add_embedding",
    ),
    ("sd1", "Stable Diffusion 1 or 2", r"(lora_unet_|unet\.)(down|up|mid)_block"),
    ("sd3", "Stable Diffusion 3", r"joint_blocks[._]\d+"),
    ("wan", "Wan", r"blocks[._]\d+[._](self|cross)_attn[._]"),
    ("z-image", "Z-Image", r"layers[._]\d+[._](attention|feed_forward)[._]"),
    ("hunyuan-video", "HunyuanVideo", r"(img_attn_q|img_attn_qkv|self_attn_qkv)[._]"),
)


def foreign_family(keys: Iterable[str]) -> tuple[str, str] | None:
    """The family of a file that is no FLUX.2 LoRA, by its keys, and why it cannot fit; None where it is not known."""
    keys = list(keys)
    for family, title, pattern in _OTHERS[:1]:
        if any(re.search(pattern, key) for key in keys):
            return family, _reason(title)
    if any(re.search(_FLUX1_KEYS, key) for key in keys):
        return FLUX1, FLUX1_REASON
    for family, title, pattern in _OTHERS[1:]:
        if any(re.search(pattern, key) for key in keys):
            return family, _reason(title)
    return None


def family_by_shapes(shapes: Mapping[str, tuple[int, int]]) -> tuple[str | None, str]:
    """The family whose modules, by diffusers' names, have these shapes (outputs, inputs), and why none where none fits.

    A file can fit only one: widths and numbers of blocks differ. FLUX.1 and Qwen-Image files that hold only names that
    FLUX.2 has too are told by their shapes and block numbers.
    """
    for name, layout in LAYOUTS.items():
        if first_misfit(shapes, layout) is None:
            return name, ""
    if _is_flux1(shapes):
        return FLUX1, FLUX1_REASON
    if _is_qwen_image(shapes):
        return QWEN_IMAGE, _reason("Qwen-Image")
    misfits = "; ".join(f"{name}: {first_misfit(shapes, layout)}" for name, layout in LAYOUTS.items())
    return None, f"It has FLUX.2's names, but fits no known model ({misfits})."


def first_misfit(shapes: Mapping[str, tuple[int, int]], layout: Layout) -> str | None:
    """What does not fit a layout first, for people; None where all does."""
    known = linear_shapes(layout)
    for name, found in shapes.items():
        if name not in known:
            return f"no module {name!r}"
        if found != known[name]:
            return f"{name!r} is {found} in the file and {known[name]} in the model"
    return None


def _is_flux1(shapes: Mapping[str, tuple[int, int]]) -> bool:
    width = 3072
    ungated = {"ff.linear_in": (4 * width, width), "ff_context.linear_in": (4 * width, width)}
    ungated |= {"ff.linear_out": (width, 4 * width), "ff_context.linear_out": (width, 4 * width)}
    ungated |= {"attn.to_qkv_mlp_proj": (7 * width, width), "attn.to_out": (width, 5 * width)}
    numbers: dict[str, int] = {"transformer_blocks": 0, "single_transformer_blocks": 0}
    for name, found in shapes.items():
        kind, _, rest = name.partition(".")
        number, _, ending = rest.partition(".")
        if kind not in numbers or not number.isdigit():
            continue
        if found != ungated.get(ending, (width, width)):
            return False
        numbers[kind] = max(numbers[kind], int(number))
    return numbers["transformer_blocks"] < 19 and numbers["single_transformer_blocks"] < 38 and bool(shapes)


def _is_qwen_image(shapes: Mapping[str, tuple[int, int]]) -> bool:
    """Attention alone, 3072 wide, of a block from 19 on, which FLUX.1 does not have; there are 60 double ones."""
    found = {re.fullmatch(r"transformer_blocks\.(\d+)\.attn\..+", name) for name in shapes}
    numbers = [int(match[1]) for match in found if match]
    return None not in found and set(shapes.values()) == {(3072, 3072)} and 19 <= max(numbers) < 60


def _reason(title: str) -> str:
    return f"It is a LoRA of {title}, whose modules FLUX.2 [klein] does not have: train again on klein."
