"""Target modules in the words of other trainers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from peft.tuners.tuners_utils import check_target_module_exists
from tests.exports.project import Project, config_of

from likeness.exports.targets import (
    chosen_modules,
    impossible_warning,
    module_endings,
    original_modules,
    pattern_of,
)
from likeness.klein.family import KLEIN_4B, KLEIN_9B, linear_shapes
from likeness.klein.targets import PRESETS, matched_names, target_regex
from likeness.lora.names import names_of


@pytest.mark.parametrize("layout", [KLEIN_4B, KLEIN_9B])
@pytest.mark.parametrize("targets", [*PRESETS, "all_blocks@double=0,3;single=7", r"single_transformer_blocks\.3\..*"])
def test_module_endings_mean_exactly_the_chosen_modules(layout: Any, targets: str) -> None:
    """Oracle: PEFT's own matching of a list of names."""
    from peft import LoraConfig

    if targets.startswith("single_") and not targets.startswith("single_t"):
        assert targets in PRESETS
    endings = module_endings(targets, layout)
    config = LoraConfig(target_modules=endings)
    lists = [f"transformer_blocks.{index}.attn.to_out" for index in range(layout.num_double)]
    hit = [name for name in [*linear_shapes(layout), *lists] if check_target_module_exists(config, name)]
    assert hit == matched_names(target_regex(targets, layout), layout)
    assert "attn.to_out" not in endings


CHOICES = [*PRESETS, "all_blocks@double=0,3;single=1,7,11", "double_attn+x_embedder"]


@pytest.mark.parametrize("layout", [KLEIN_4B, KLEIN_9B])
@pytest.mark.parametrize("targets", CHOICES)
def test_original_names_mean_the_chosen_modules_however_they_are_matched(layout: Any, targets: str) -> None:
    """Whole names, parts of names (ai-toolkit), and patterns to leave out (diffusion-pipe) or in (musubi-tuner) agree."""
    inside, outside, impossible = original_modules(targets, layout)
    everything = [name for name in names_of(layout) if name.startswith(("double_blocks.", "single_blocks."))]
    assert sorted([*inside, *outside]) == sorted(everything)
    assert [name for name in everything if any(part in name for part in inside)] == inside
    assert [name for name in everything if re.fullmatch(pattern_of(inside), name)] == inside
    assert [name for name in everything if outside and re.fullmatch(pattern_of(outside), name)] == outside
    own = [module for name in inside for module in names_of(layout)[name]]
    assert set(own) | set(impossible) == set(chosen_modules(targets, layout))
    assert impossible == (["x_embedder"] if "x_embedder" in targets else [])


def test_a_part_of_a_fused_projection_is_named() -> None:
    inside, _, impossible = original_modules(r"transformer_blocks\.0\.attn\.to_q", KLEIN_4B)
    assert inside == ["double_blocks.0.img_attn.qkv"]
    assert impossible == ["transformer_blocks.0.attn.to_q"]
    [line] = impossible_warning("x", impossible, "T")
    assert line.startswith("training.targets = x: T trains whole modules")


def test_one_name_alone_becomes_a_pattern_for_diffsynth(tmp_path: Path) -> None:
    """PEFT reads a single string as a regular expression over full names."""
    folder, _ = Project(tmp_path).write_photos().export(trainer="diffsynth-studio", training={"targets": "single_in"})
    [pattern] = config_of(folder / "config/train.sh")["lora_target_modules"]
    hit = [name for name in linear_shapes(KLEIN_4B) if re.fullmatch(pattern, name)]
    assert hit == matched_names(target_regex("single_in", KLEIN_4B), KLEIN_4B)
