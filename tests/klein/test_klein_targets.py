"""Layouts and target modules against the real transformer class on the meta device, and against PEFT."""

from __future__ import annotations

import re

import pytest
import torch
from diffusers import Flux2Transformer2DModel
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from tests.tiny import tiny_transformer

from likeness.errors import UserError
from likeness.klein import family, targets
from likeness.klein.family import KLEIN_4B, KLEIN_9B

# Published counts and parameters per rank, 4B and 9B.
TABLE = {
    "double_attn_img": (20, 32, 122_880, 262_144),
    "double_attn": (40, 64, 245_760, 524_288),
    "double_all": (60, 96, 583_680, 1_245_184),
    "single_in": (20, 24, 614_400, 983_040),
    "single_all": (40, 48, 921_600, 1_474_560),
    "attention": (60, 80, 1_044_480, 1_736_704),
    "st_default": (40, 56, 737_280, 1_245_184),
    "all_blocks": (100, 144, 1_505_280, 2_719_744),
    "image_stream": (30, 48, 291_840, 622_592),
}


def meta_transformer(num_double, num_single, heads, joint):
    with torch.device("meta"):
        return Flux2Transformer2DModel(
            num_layers=num_double,
            num_single_layers=num_single,
            num_attention_heads=heads,
            joint_attention_dim=joint,
            guidance_embeds=False,
        )


@pytest.fixture(scope="module")
def meta():
    return {"klein-4b": meta_transformer(5, 20, 24, 7680), "klein-9b": meta_transformer(8, 24, 32, 12288)}


@pytest.mark.parametrize("layout", [KLEIN_4B, KLEIN_9B], ids=lambda layout: layout.name)
def test_names_and_shapes_equal_the_real_model(meta, layout):
    transformer = meta[layout.name]
    real = {
        name: tuple(module.weight.shape)
        for name, module in transformer.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    assert family.linear_shapes(layout) == real
    assert family.layout_of(transformer.config) == layout
    parameters = {"klein-4b": 3_875_544_576, "klein-9b": 9_078_581_248}[layout.name]
    assert sum(parameter.numel() for parameter in transformer.parameters()) == parameters


@pytest.mark.parametrize("preset", sorted(targets.PRESETS))
@pytest.mark.parametrize("layout", [KLEIN_4B, KLEIN_9B], ids=lambda layout: layout.name)
def test_presets_have_the_published_counts(meta, layout, preset):
    column = 0 if layout is KLEIN_4B else 1
    regex = targets.target_regex(preset, layout)
    assert targets.count_targets(meta[layout.name], regex) == TABLE[preset][column]
    assert targets.check_count(meta[layout.name], regex, layout) == TABLE[preset][column]
    assert len(targets.matched_names(regex, layout)) == TABLE[preset][column]
    assert targets.adapter_parameters(regex, layout, 1) == TABLE[preset][2 + column]
    assert targets.file_bytes(regex, layout, 32) == 64 * TABLE[preset][2 + column]


@pytest.mark.parametrize("choice", [*targets.PRESETS, "all_blocks@double=1;single=0,2+x_embedder", r".*\.to_q"])
def test_peft_adapts_exactly_the_counted_modules(choice):
    transformer = tiny_transformer()
    layout = family.layout_of(transformer.config)
    regex = targets.target_regex(choice, layout)
    transformer.add_adapter(LoraConfig(r=2, target_modules=regex))
    adapted = [name for name, module in transformer.named_modules() if hasattr(module, "lora_A")]
    assert sorted(adapted) == sorted(targets.matched_names(regex, layout))
    assert targets.count_targets(transformer, regex) == len(adapted)
    trained = sum(parameter.numel() for parameter in transformer.parameters() if parameter.requires_grad)
    assert targets.adapter_parameters(regex, layout, 2) == trained


@settings(max_examples=30, deadline=None)
@given(st.sets(st.integers(0, 7), min_size=1), st.sets(st.integers(0, 23), min_size=1))
def test_chosen_blocks_and_no_others(doubles, singles):
    chosen = f"all_blocks@double={','.join(map(str, doubles))};single={','.join(map(str, singles))}"
    names = targets.matched_names(targets.target_regex(chosen, KLEIN_9B), KLEIN_9B)
    assert len(names) == 12 * len(doubles) + 2 * len(singles)
    indices = {(name.split(".")[0], int(name.split(".")[1])) for name in names}
    assert indices == {("transformer_blocks", i) for i in doubles} | {("single_transformer_blocks", i) for i in singles}


def test_ranges_extras_and_one_kind_of_block():
    assert len(targets.matched_names(targets.target_regex("all_blocks@single=7,12-14", KLEIN_4B), KLEIN_4B)) == 8
    with_extra = targets.matched_names(targets.target_regex("all_blocks+x_embedder", KLEIN_4B), KLEIN_4B)
    assert len(with_extra) == 101 and "x_embedder" in with_extra
    assert (
        len(targets.matched_names(targets.target_regex("attention@double=0+x_embedder+proj_out", KLEIN_4B), KLEIN_4B))
        == 6
    )


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("all_blocks@double=5", r"names double block 5, but klein-4b has 5 double blocks. Allowed: 0 to 4"),
        ("all_blocks@single=19,20,30-31", "single block 20, 30, 31"),
        (r"single_transformer_blocks\.(7|30)\.attn\.to_out", "single block 30"),
        (r"transformer_blocks\.(8|9|10|11|12)\..*", "double block 8, 9, 10, 11, 12"),
        ("single_attn@double=1", "Allowed: all_blocks"),
        ("all_block", "did you mean 'all_blocks'"),
        ("single_in@double=1", "does not train"),
        ("all_blocks@doubles=1", "cannot read 'doubles=1'"),
        ("all_blocks@double=1;double=2", "each kind once"),
        ("all_blocks+img_in", "did you mean 'x_embedder'|not an extra module"),
        ("to_q", "matches no linear module"),
        (r"(single_)?transformer_blocks\.\d+\.attn\.to_out", "list of modules"),
        ("(", "neither a preset nor a regular expression"),
    ],
)
def test_mistakes_are_named(choice, message):
    with pytest.raises(UserError, match=message):
        targets.target_regex(choice, KLEIN_4B)


@pytest.mark.parametrize(
    "choice",
    [
        r"single_transformer_blocks\.\d+\..*",
        r"single_transformer_blocks\.\d\..*",
        r".*\.ff\..*",
        r"transformer_blocks\.4\..*to_q",
    ],
)
def test_wildcards_over_blocks_are_allowed(choice):
    assert targets.target_regex(choice, KLEIN_4B) == choice


def test_a_model_with_other_blocks_than_its_layout_is_refused():
    regex = targets.target_regex("all_blocks", KLEIN_4B)
    with pytest.raises(UserError, match="matches 30 modules of the loaded transformer, but 100"):
        targets.check_count(tiny_transformer(), regex, KLEIN_4B)


def test_presets_need_no_backtracking_between_kinds_of_blocks():
    regex = targets.target_regex("double_all", KLEIN_9B)
    assert not re.fullmatch(regex, "single_transformer_blocks.0.attn.to_out")
    assert re.fullmatch(regex, "transformer_blocks.0.attn.to_out.0")


def test_layouts_by_name_and_from_foreign_configs():
    assert family.known_layout("black-forest-labs/FLUX.2-klein-base-4B") is KLEIN_4B
    assert family.known_layout("models/flux2-klein-9b") is KLEIN_9B
    assert family.known_layout("models/mine") is None and family.known_layout("some-9B") is None
    assert family.layout_of(tiny_transformer().config).name == "custom"
    with pytest.raises(UserError, match="no key 'num_layers'"):
        family.layout_of({"num_attention_heads": 24})
    with pytest.raises(UserError, match="guidance_embeds"):
        family.layout_of({**meta_transformer(1, 1, 1, 96).config, "guidance_embeds": True})
