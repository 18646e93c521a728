"""Target modules in the words of other trainers: endings, original names, and patterns that leave the others out."""

from __future__ import annotations

import re
from collections.abc import Sequence

from likeness.klein.family import Layout, linear_shapes
from likeness.klein.targets import matched_names, target_regex
from likeness.lora.names import names_of

BLOCKS = ("double_blocks.", "single_blocks.")


def chosen_modules(targets: str, layout: Layout) -> list[str]:
    """Diffusers' names of the modules that a choice of targets means."""
    return matched_names(target_regex(targets, layout), layout)


def module_endings(targets: str, layout: Layout) -> list[str]:
    """The shortest list that PEFT reads as exactly these modules: an ending where it hits no other module, else names.

    `attn.to_out` is a list of modules in double blocks and a layer in single ones, so it is never an ending.
    """
    chosen = chosen_modules(targets, layout)
    others = [name for name in linear_shapes(layout) if name not in set(chosen)]
    others += [f"transformer_blocks.{index}.attn.to_out" for index in range(layout.num_double)]
    found: dict[str, None] = {}
    for name in chosen:
        parts = name.split(".")
        ending = ".".join(parts[2:]) if "blocks" in parts[0] else name
        hits_others = any(other == ending or other.endswith(f".{ending}") for other in others)
        found[name if hits_others else ending] = None
    return list(found)


def original_modules(targets: str, layout: Layout) -> tuple[list[str], list[str], list[str]]:
    """The choice in names of the original code, and what it cannot say there.

    Returns the blocks' original modules that are chosen, those that are not, and the chosen diffusers modules that
    trainers of the original code cannot train alone: parts of a fused projection, and modules outside of the blocks.
    """
    chosen = set(chosen_modules(targets, layout))
    inside, outside, impossible = [], [], []
    for original, own in names_of(layout).items():
        wanted = [name for name in own if name in chosen]
        if not original.startswith(BLOCKS):
            impossible += wanted
        elif wanted:
            inside.append(original)
            impossible += wanted if len(wanted) < len(own) else []
        else:
            outside.append(original)
    return inside, outside, impossible


def impossible_warning(targets: str, impossible: Sequence[str], title: str) -> list[str]:
    """A warning that names the modules which a trainer of the original code cannot train as they are chosen."""
    if not impossible:
        return []
    more = f" and {len(impossible) - 3} more" if len(impossible) > 3 else ""
    return [
        f"training.targets = {targets}: {title} trains whole modules of the blocks in the original code's names, so "
        f"{', '.join(impossible[:3])}{more} cannot be chosen alone: query, key and value go together, and modules "
        "outside of the blocks are left out"
    ]


def pattern_of(names: Sequence[str]) -> str:
    """One regular expression that matches exactly these names of modules in blocks in full."""
    by_shape: dict[tuple[str, str], list[str]] = {}
    for name in names:
        blocks, index, ending = name.split(".", 2)
        by_shape.setdefault((blocks, ending), []).append(index)
    return "|".join(
        rf"{blocks}\.({'|'.join(indices)})\.{re.escape(ending)}" for (blocks, ending), indices in by_shape.items()
    )
