"""Target modules: which linear modules an adapter trains, as one regular expression that PEFT matches in full.

A list of endings such as `to_q, to_out.0` silently misses the single blocks, and `attn.to_out` also hits a module list
of the double blocks; so every choice becomes one regular expression over full module names, and its count is checked
against the layout. Nothing heavy is imported: a wrong block index is found while the config is read.

Grammar of a choice: a preset, then blocks by index, then extra modules, as in
`all_blocks@double=0,3;single=7,12-14+x_embedder`; anything else is a regular expression over module names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from likeness.errors import UserError, nearest
from likeness.klein.family import (
    DOUBLE_IMAGE_ATTENTION,
    DOUBLE_IMAGE_MLP,
    DOUBLE_MODULES,
    DOUBLE_TEXT_ATTENTION,
    SINGLE_IN,
    SINGLE_MODULES,
    Layout,
    linear_shapes,
)

if TYPE_CHECKING:
    from torch import nn

PRESETS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "double_attn_img": (DOUBLE_IMAGE_ATTENTION, ()),
    "double_attn": (DOUBLE_IMAGE_ATTENTION + DOUBLE_TEXT_ATTENTION, ()),
    "double_all": (DOUBLE_MODULES, ()),
    "image_stream": (DOUBLE_IMAGE_ATTENTION + DOUBLE_IMAGE_MLP, ()),
    "single_in": ((), SINGLE_IN),
    "single_all": ((), SINGLE_MODULES),
    "attention": (DOUBLE_IMAGE_ATTENTION, SINGLE_MODULES),
    "st_default": (DOUBLE_IMAGE_ATTENTION, SINGLE_IN),
    "all_blocks": (DOUBLE_MODULES, SINGLE_MODULES),
}
"""Preset → (module endings in double blocks, module endings in single blocks)."""

EXTRAS = ("x_embedder", "context_embedder", "proj_out")
"""Modules outside of the blocks that a choice may add; x_embedder is the image input, of use for edits."""

DOUBLE_BLOCKS = "transformer_blocks"
SINGLE_BLOCKS = "single_transformer_blocks"
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def target_regex(preset_or_regex: str, layout: Layout) -> str:
    """Turn a choice of targets into the regular expression to give to PEFT as `target_modules`.

    Raises UserError for a block index that the layout lacks, for a choice that matches nothing, and for one that would
    match something other than linear modules. Patterns and counts: verified against peft and the meta-device models.
    """
    head = re.split(r"[@+]", preset_or_regex, maxsplit=1)[0].strip()
    if head in PRESETS:
        regex = _preset_regex(preset_or_regex, head, layout)
    else:
        regex = _checked_regex(preset_or_regex, layout)
    matched_names(regex, layout)
    return regex


def targets_of_blocks(blocks: Iterable[str], preset: str = "all_blocks") -> str:
    """Write blocks (`double.0`, `single.7`) as the `targets:` of a training, such as `all_blocks@double=0;single=2,7`.

    Anything else, such as `other`, is left out. Raises UserError where no block is left.
    """
    indices: dict[str, list[int]] = {"double": [], "single": []}
    for block in blocks:
        kind, _, index = block.partition(".")
        if kind in indices:
            indices[kind].append(int(index))
    chosen = [f"{kind}={','.join(map(str, sorted(found)))}" for kind, found in indices.items() if found]
    if not chosen:
        raise UserError("no block was chosen, so there is nothing to train.")
    return f"{preset}@{';'.join(chosen)}"


def matched_names(regex: str, layout: Layout) -> list[str]:
    """List the linear modules that the expression matches in full, in the model's order; UserError for none."""
    names = list(linear_shapes(layout))
    found = [name for name in names if re.fullmatch(regex, name)]
    if not found:
        raise UserError(
            f"targets: {regex!r} matches no linear module of {layout.name}. A regular expression must match the full "
            f"name, such as 'transformer_blocks.0.attn.to_q'; or take a preset. {nearest(regex, PRESETS)}"
        )
    containers = [name for name in _module_lists(layout) if re.fullmatch(regex, name)]
    if containers:
        raise UserError(
            f"targets: {regex!r} also matches {containers[0]!r}, which is a list of modules, not a linear layer. "
            f"Write {containers[0] + '.0'!r} for the double blocks and 'single_transformer_blocks...attn.to_out' "
            "for the others."
        )
    return found


def count_targets(transformer: nn.Module, regex: str) -> int:
    """Count the linear modules of a model (also one on the meta device) whose full name the expression matches.

    Works on a bare model and on one that already carries adapters, whose wrapped layers keep their name.
    """
    from torch import nn

    count = 0
    for name, module in transformer.named_modules():
        layer = getattr(module, "base_layer", module)
        count += bool(isinstance(layer, nn.Linear) and re.fullmatch(regex, name))
    return count


def check_count(transformer: nn.Module, regex: str, layout: Layout) -> int:
    """Return the number of targets in the model; UserError where it is not the number that the layout promises."""
    expected, found = len(matched_names(regex, layout)), count_targets(transformer, regex)
    if found != expected:
        raise UserError(
            f"targets: {regex!r} matches {found} modules of the loaded transformer, but {expected} of {layout.name}."
        )
    return found


def adapter_parameters(regex: str, layout: Layout, rank: int) -> int:
    """Number of trained values: rank × (inputs + outputs), summed over the matched modules."""
    shapes = linear_shapes(layout)
    return rank * sum(sum(shapes[name]) for name in matched_names(regex, layout))


def file_bytes(regex: str, layout: Layout, rank: int, dtype: str = "bfloat16") -> int:
    """Predict the bytes of the adapter's tensors on disk; the file's header (names and metadata) comes on top."""
    return adapter_parameters(regex, layout, rank) * _BYTES[dtype]


def _preset_regex(choice: str, preset: str, layout: Layout) -> str:
    rest, *extras = [part.strip() for part in choice[len(choice.split(preset)[0]) + len(preset) :].split("+")]
    double_endings, single_endings = PRESETS[preset]
    if rest:
        blocks = _block_choice(choice, rest, layout)
        double_index = _index_pattern(blocks.get("double", ()))
        single_index = _index_pattern(blocks.get("single", ()))
    else:
        double_index = single_index = r"\d+"
    parts = []
    if double_endings and double_index:
        parts.append(rf"{DOUBLE_BLOCKS}\.{double_index}\.{_endings_pattern(double_endings)}")
    if single_endings and single_index:
        parts.append(rf"{SINGLE_BLOCKS}\.{single_index}\.{_endings_pattern(single_endings)}")
    for extra in extras:
        if extra not in EXTRAS:
            raise UserError(
                f"targets: {choice!r} adds {extra!r}, which is not an extra module. {nearest(extra, EXTRAS)}"
            )
        parts.append(extra)
    if not parts:
        raise UserError(f"targets: {choice!r} chooses blocks of a kind that the preset {preset!r} does not train.")
    return "|".join(parts)


def _block_choice(choice: str, text: str, layout: Layout) -> dict[str, list[int]]:
    blocks: dict[str, list[int]] = {}
    counts = {"double": layout.num_double, "single": layout.num_single}
    for part in text.removeprefix("@").split(";"):
        kind, _, indices = part.strip().partition("=")
        if kind not in counts or kind in blocks or not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", indices):
            raise UserError(
                f"targets: cannot read {part!r} in {choice!r}. Blocks are chosen as 'double=0,3;single=7,12-14', "
                "each kind once."
            )
        blocks[kind] = _expand(indices)
        absent = [index for index in blocks[kind] if index >= counts[kind]]
        if absent:
            raise UserError(_absent_message(choice, kind, absent, layout))
    return blocks


def _expand(indices: str) -> list[int]:
    found: set[int] = set()
    for part in indices.split(","):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return sorted(found)


def _index_pattern(indices: Sequence[int]) -> str:
    return f"({'|'.join(map(str, indices))})" if indices else ""


def _endings_pattern(endings: Iterable[str]) -> str:
    return f"({'|'.join(re.escape(ending) for ending in endings)})"


def _checked_regex(regex: str, layout: Layout) -> str:
    try:
        pattern = re.compile(regex)
    except re.error as error:
        raise UserError(
            f"targets: {regex!r} is neither a preset nor a regular expression ({error}). {nearest(regex, PRESETS)}"
        ) from None
    for kind, count in (("double", layout.num_double), ("single", layout.num_single)):
        absent = _named_absent_blocks(pattern, kind, count)
        if absent:
            raise UserError(_absent_message(regex, kind, absent, layout))
    return regex


def _named_absent_blocks(pattern: re.Pattern[str], kind: str, count: int) -> list[int]:
    """Indices beyond the last block that the expression names on purpose: a wildcard matches a whole range of them."""
    prefix, endings = (DOUBLE_BLOCKS, DOUBLE_MODULES) if kind == "double" else (SINGLE_BLOCKS, SINGLE_MODULES)
    absent = [
        index
        for index in range(count, 100)
        if any(pattern.fullmatch(f"{prefix}.{index}.{ending}") for ending in endings)
    ]
    one_digit, two_digits = set(range(count, 10)), set(range(max(count, 10), 100))
    for wildcard in (one_digit | two_digits, one_digit, two_digits):
        if wildcard and set(absent) == wildcard:
            return []
    return absent


def _absent_message(choice: str, kind: str, absent: Sequence[int], layout: Layout) -> str:
    count = layout.num_double if kind == "double" else layout.num_single
    return (
        f"targets: {choice!r} names {kind} block {', '.join(map(str, absent))}, but {layout.name} has {count} "
        f"{kind} blocks. "
        f"Allowed: 0 to {count - 1}."
    )


def _module_lists(layout: Layout) -> list[str]:
    return [f"{DOUBLE_BLOCKS}.{index}.attn.to_out" for index in range(layout.num_double)]
