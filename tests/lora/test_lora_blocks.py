"""Blocks: anchored names, weights baked and at run time, and targets. Oracles: the pipeline's own loader, brute force."""

from __future__ import annotations

import pytest
import torch
from tests.lora.test_lora_files import velocity, velocity_of_file
from tests.tiny import tiny_transformer

from likeness.errors import UserError
from likeness.klein.family import KLEIN_4B, KLEIN_9B, linear_shapes
from likeness.klein.targets import matched_names, target_regex, targets_of_blocks
from likeness.lora.adapter import Lora, LoraModule
from likeness.lora.blocks import (
    adapted_blocks,
    block_of,
    blocks_of,
    expand_blocks,
    norm_shares,
    weigh_blocks,
)
from likeness.lora.files import save_lora
from likeness.lora.runtime import adapters_on, block_weights, set_weights


def lora_on(names, layout, seed=0, rank=3, scale=0.7):
    """A LoRA with random factors on some modules."""
    generator, shapes = torch.Generator().manual_seed(seed), linear_shapes(layout)
    modules = {}
    for name in names:
        outputs, inputs = shapes[name]
        down_RI = torch.randn(rank, inputs, generator=generator) / inputs**0.5
        modules[name] = LoraModule(down_RI, torch.randn(outputs, rank, generator=generator) * 0.3, scale)
    return Lora(dict(sorted(modules.items())))


@pytest.fixture(scope="module")
def lora(layout):
    return lora_on([*matched_names(target_regex("all_blocks", layout), layout), "x_embedder"], layout)


def velocity_with(lora, weights, scale=1.0):
    transformer = tiny_transformer(seed=1)
    with adapters_on(transformer, {"a": lora}, "the LoRA"):
        set_weights(transformer, "a", block_weights(weights, scale))
        return velocity(transformer)


def test_names_are_anchored_and_every_module_has_one_block():
    assert block_of("transformer_blocks.1.attn.to_q") == "double.1"
    assert block_of("single_transformer_blocks.1.attn.to_out") == "single.1"
    assert block_of("single_transformer_blocks.10.attn.to_out") == "single.10"
    assert block_of("x_embedder") == block_of("my.transformer_blocks.1.attn.to_q") == "other"
    for layout in (KLEIN_4B, KLEIN_9B):
        found = {block_of(name) for name in linear_shapes(layout)}
        assert found == {*blocks_of(layout), "other"}


def test_a_block_index_does_not_reach_its_namesakes(layout):
    """Double 1 and single 1 knocked out differ, and each equals the LoRA without exactly those modules."""
    names = matched_names(target_regex("all_blocks", layout), layout)
    lora = lora_on(names, layout)
    for block, prefix in (("double.1", "transformer_blocks.1."), ("single.1", "single_transformer_blocks.1.")):
        rest = Lora({name: module for name, module in lora.modules.items() if not name.startswith(prefix)})
        assert len(rest.modules) == len(names) - (12 if block == "double.1" else 2)
        assert torch.allclose(velocity_with(lora, {block: 0.0}), velocity_with(rest, {}), atol=1e-6)
    difference = velocity_with(lora, {"double.1": 0.0}) - velocity_with(lora, {"single.1": 0.0})
    assert difference.abs().max() > 1e-3


def test_weight_one_is_bit_identical_and_weight_zero_is_the_bare_model(lora, layout):
    blocks = adapted_blocks(lora)
    assert torch.equal(velocity_with(lora, dict.fromkeys(blocks, 1.0)), velocity_with(lora, {}))
    bare = velocity(tiny_transformer(seed=1))
    assert torch.equal(velocity_with(lora, dict.fromkeys(blocks, 0.0)), bare)
    assert (velocity_with(lora, {}) - bare).abs().max() > 0.01


@pytest.mark.parametrize("weights", [{"single.2": 0.0}, {"double.0": 0.25, "single.0": 0.5}, {"other": 0.0}])
def test_baked_weights_through_the_pipelines_loader_equal_run_time(lora, tmp_path, weights):
    path = tmp_path / "weighted.safetensors"
    save_lora(path, weigh_blocks(lora, weights), {})
    assert torch.allclose(velocity_of_file(path), velocity_with(lora, weights), atol=1e-5)


def test_taking_adapters_off_leaves_the_bare_model(lora):
    transformer = tiny_transformer(seed=1)
    bare = velocity(transformer)
    with adapters_on(transformer, {"a": lora, "b": lora}, "the LoRAs"):
        together = velocity(transformer)
    assert torch.equal(velocity(transformer), bare)
    doubled = Lora({name: module._replace(scale=2 * module.scale) for name, module in lora.modules.items()})
    assert torch.allclose(together, velocity_with(doubled, {}), atol=1e-5)


def test_baking_keeps_untouched_modules_and_leaves_zero_blocks_out(lora):
    weighted = weigh_blocks(lora, {"single.1": 0.0, "double.0": 0.5})
    assert adapted_blocks(weighted) == {"double.0": 12, "double.1": 12, "single.0": 2, "single.2": 2, "other": 1}
    for name, module in weighted.modules.items():
        factor = 0.5 if block_of(name) == "double.0" else 1.0
        assert torch.allclose(module.delta(), factor * lora.modules[name].delta())
    with pytest.raises(UserError, match="nothing would be left"):
        weigh_blocks(lora, dict.fromkeys(adapted_blocks(lora), 0.0))


def test_norm_shares_agree_with_full_matrices(lora):
    full = {name: float(module.delta().double().square().sum()) for name, module in lora.modules.items()}
    shares = norm_shares(lora)
    assert sum(shares.values()) == pytest.approx(1)
    own = sum(value for name, value in full.items() if name.startswith("single_transformer_blocks.2."))
    assert shares["single.2"] == pytest.approx(own / sum(full.values()), rel=1e-5)


def test_the_narrowest_key_holds(layout):
    found = expand_blocks({"single": 0.5, "single.1": 0, "double.0-1": 2, "other": 0}, layout, "blocks")
    assert found == {
        "double.0": 2.0,
        "double.1": 2.0,
        "single.0": 0.5,
        "single.1": 0.0,
        "single.2": 0.5,
        "other": 0.0,
    }


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"single.3": 0}, "it has 3 single blocks, 0 to 2"),
        ({"double.1-0": 0}, "lacks"),
        ({"singles.1": 0}, "is no block"),
        ({"single.0-1": 0, "single.1-2": 1}, "single.1 has two weights"),
    ],
)
def test_wrong_blocks_are_named(layout, weights, message):
    with pytest.raises(UserError, match=message):
        expand_blocks(weights, layout, "surgery.x.blocks")


def test_blocks_become_targets_that_training_takes(layout):
    text = targets_of_blocks(["single.2", "double.1", "single.0", "other"])
    assert text == "all_blocks@double=1;single=0,2"
    names = matched_names(target_regex(text, layout), layout)
    assert {block_of(name) for name in names} == {"double.1", "single.0", "single.2"}
    assert len(names) == 16
    with pytest.raises(UserError, match="no block"):
        targets_of_blocks(["other"])
