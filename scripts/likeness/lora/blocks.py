"""A LoRA by blocks: which block a module belongs to, how much each block changes, and a LoRA with its blocks weighted.

A block is written `double.3` or `single.7`, counted from 0; modules outside of the blocks together are `other`. Names
are matched from their start to the next dot: `transformer_blocks.1` is neither `single_transformer_blocks.1` nor
`transformer_blocks.10`, which loaders that look for substrings confuse.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from likeness.config.surgery import BLOCK_KEY, OTHER
from likeness.errors import UserError, nearest
from likeness.klein.family import Layout
from likeness.klein.targets import DOUBLE_BLOCKS, SINGLE_BLOCKS
from likeness.lora.adapter import Lora
from likeness.lora.factors import energy
from likeness.lora.operation import Operated, Operation

KINDS = {DOUBLE_BLOCKS: "double", SINGLE_BLOCKS: "single"}
_BLOCK = re.compile(rf"({DOUBLE_BLOCKS}|{SINGLE_BLOCKS})\.(\d+)\.")


def block_of(module_name: str) -> str:
    """Name the block of a module (diffusers' name without prefix); `other` for modules outside of the blocks."""
    found = _BLOCK.match(module_name)
    return f"{KINDS[found[1]]}.{int(found[2])}" if found else OTHER


def blocks_of(layout: Layout) -> list[str]:
    """List a model's blocks in the order in which they run: the double ones first."""
    return [f"double.{index}" for index in range(layout.num_double)] + [
        f"single.{index}" for index in range(layout.num_single)
    ]


def adapted_blocks(lora: Lora) -> dict[str, int]:
    """Number of adapted modules by block, in the order of the model; `other` comes last."""
    counts: dict[str, int] = {}
    for name in lora.modules:
        counts[block_of(name)] = counts.get(block_of(name), 0) + 1
    return {block: counts[block] for block in sorted(counts, key=_place)}


def expand_blocks(weights: Mapping[str, float], layout: Layout, where: str) -> dict[str, float]:
    """Turn config keys (`single.2`, `double.0-3`, `double`, `other`) into one weight a block; the narrowest key holds.

    `where` names the config key in errors. Raises UserError for a key that is no block, for a block that the layout
    lacks, and for a block that two keys of one width name.
    """
    known = [*blocks_of(layout), OTHER]
    found: dict[str, tuple[int, float]] = {}
    for key, weight in weights.items():
        named = _named_blocks(key, known, layout, where)
        for block in named:
            width, _ = found.get(block, (len(known) + 1, 0.0))
            if len(named) == width:
                raise UserError(f"{where}.{key}: {block} has two weights. Name it in one key only.")
            if len(named) < width:
                found[block] = (len(named), float(weight))
    return {block: found[block][1] for block in known if block in found}


def weigh_blocks(lora: Lora, weights: Mapping[str, float]) -> Lora:
    """Bake weights by block into a LoRA's scales; blocks without a weight keep theirs, blocks of weight 0 are left out.

    At weight 1 a module stays what it was, bit for bit. Raises UserError where nothing would be left.
    """
    return weigh_operation(lora, weights).lora()


def weigh_operation(lora: Lora, weights: Mapping[str, float]) -> Operation:
    """The same as an operation that is computed while it is written; rows give each module's block and weight."""
    of_module = {name: weights.get(block_of(name), 1.0) for name in lora.modules}
    left = [name for name, weight in of_module.items() if weight]
    if not left:
        raise UserError("blocks: every block that the LoRA adapts has weight 0, so nothing would be left of it.")

    def operate(name: str) -> Operated:
        module, weight = lora.modules[name], of_module[name]
        row = {"rank_before": module.rank, "rank_after": module.rank, "block": block_of(name), "weight": weight}
        return Operated(module._replace(scale=module.scale * weight), row)

    about = {"operation": "weigh-blocks", "blocks": ",".join(f"{block}={at:g}" for block, at in weights.items())}
    return Operation(sorted(left), operate, about)


def norm_shares(lora: Lora) -> dict[str, float]:
    """Share of each block in the squared Frobenius norm of all changes of weight; sums to 1. Zeros for a zero LoRA."""
    squares = dict.fromkeys(adapted_blocks(lora), 0.0)
    for name, module in lora.modules.items():
        squares[block_of(name)] += energy(module)
    total = sum(squares.values())
    return {block: square / total if total else 0.0 for block, square in squares.items()}


def _named_blocks(key: str, known: list[str], layout: Layout, where: str) -> list[str]:
    if not re.fullmatch(BLOCK_KEY, key):
        raise UserError(
            f"{where}: {key!r} is no block. Write `single.7`, `double.0-3`, `double`, `single` or `other`. "
            f"{nearest(key, known)}"
        )
    kind, _, indices = key.partition(".")
    if not indices:
        return [block for block in known if block.partition(".")[0] == kind]
    first, _, last = indices.partition("-")
    named = [f"{kind}.{index}" for index in range(int(first), int(last or first) + 1)]
    absent = [block for block in named if block not in known]
    if absent or not named:
        count = layout.num_double if kind == "double" else layout.num_single
        raise UserError(
            f"{where}: {key!r} names a block that {layout.name} lacks: it has {count} {kind} blocks, 0 to {count - 1}."
        )
    return named


def _place(block: str) -> tuple[int, int]:
    kind, _, index = block.partition(".")
    return (["double", "single", OTHER].index(kind), int(index or 0))
