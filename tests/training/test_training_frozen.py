"""The stored base: what each form keeps of a matrix and its gradient, and the self-test that refuses a corrupt one."""

from __future__ import annotations

import logging
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from tests.tiny import tiny_transformer
from tests.training.test_training_loop import made_data, made_sample, made_training, run_steps
from tests.training.test_training_train import train, verify_once  # noqa: F401
from torch import nn

from likeness.errors import UserError
from likeness.klein.family import layout_of
from likeness.klein.targets import matched_names, target_regex
from likeness.lora.files import read_lora
from likeness.store import sha256_of_file
from likeness.training import self_test
from likeness.training.frozen import (
    FLOAT8,
    KINDS,
    In8Bits,
    InMainMemory,
    MultipliedIn8Bits,
    block_linears,
    check_kind,
    hold_in_main_memory,
    linear_at,
    quantise,
    row_scales,
    stored_values,
)
from likeness.training.self_test import block_of, cosine, exchange_checked, probe

ERRORS = {"int8": 0.005, "fp8": 0.03, "fp8_matmul": 0.05}
"""Relative error of a product with normal values: half a step of the row's largest value, or of 3 bits of mantissa."""


def made_layer(dtype=torch.float32, bias=True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(64, 48, bias=bias).to(dtype).requires_grad_(False)


def of_kind(kind: str, layer: nn.Linear) -> In8Bits:
    layer_class, stored = KINDS[kind]
    return layer_class(layer, layer.weight, stored)


def forward_backward(layer, input_MI):
    input_MI = input_MI.clone().requires_grad_()
    output_MO = layer(input_MI)
    (output_MO.float() ** 2).sum().backward()
    assert input_MI.grad is not None
    return output_MO.detach().float(), input_MI.grad.float()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", list(KINDS))
def test_products_and_gradients_are_near_the_true_ones(kind, dtype, bias):
    layer = made_layer(dtype, bias)
    stored = of_kind(kind, layer)
    input_MI = torch.randn(2, 16, 64, dtype=dtype)
    for found, true in zip(forward_backward(stored, input_MI), forward_backward(layer, input_MI), strict=True):
        assert 0 < (found - true).norm() / true.norm() < 2 * ERRORS[kind]
    if kind != "fp8_matmul":
        # What is stored is what is computed with: a plain layer with the restored matrix gives the same to rounding.
        plain = made_layer(dtype, bias)
        plain.weight.data = stored.weight
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        for found, true in zip(forward_backward(stored, input_MI), forward_backward(plain, input_MI), strict=True):
            assert (found - true).norm() / true.norm() < tolerance


@given(
    stored=st.sampled_from([FLOAT8, torch.int8]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    exponent=st.integers(-12, 12),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_no_value_overflows_and_each_is_off_by_half_a_step_at_most(stored, dtype, exponent, seed):
    matrix = (torch.randn(5, 32, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent).to(dtype)
    matrix[2] = 0
    scale = row_scales(matrix, stored, dtype)
    assert scale.dtype == dtype
    values = stored_values(matrix, scale, stored).float()
    assert values.isfinite().all() and values[2].abs().max() == 0
    error = (values * scale.float() - matrix.float()).abs()
    step = scale.float() if stored == torch.int8 else (matrix.float().abs() / 8).maximum(scale.float() * 2**-8)
    assert (error <= 0.51 * step).all()


def test_memory_holds_eight_bits_a_value_and_the_backward_pass_keeps_no_copy():
    layer = of_kind("fp8", made_layer(torch.bfloat16))
    assert layer.values_OI.element_size() == 1 and layer.scale_O.dtype == torch.bfloat16
    assert dict(layer.named_parameters()).keys() == {"bias"}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda one: one):
        layer(torch.randn(3, 64, dtype=torch.bfloat16, requires_grad=True))
    assert sorted(one.dtype for one in kept if one.numel() == 48 * 64) == [FLOAT8]


def test_peft_wraps_stored_layers_and_sees_their_type_and_place():
    transformer = tiny_transformer()
    hold_in_main_memory(transformer, torch.device("cpu"))
    quantise(transformer, "fp8")
    layout = layout_of(transformer.config)
    regex = target_regex("all_blocks", layout)
    transformer.add_adapter(LoraConfig(r=2, target_modules=regex))
    wrapped = [module for module in transformer.modules() if hasattr(module, "base_layer")]
    assert len(wrapped) == len(matched_names(regex, layout)) == len(block_linears(transformer))
    assert all(isinstance(module.base_layer, In8Bits) for module in wrapped)
    assert transformer.dtype == torch.float32


def test_only_sides_that_fit_are_multiplied_in_eight_bits():
    transformer = tiny_transformer()
    transformer.transformer_blocks[0].attn.to_q = nn.Linear(64, 40)
    quantise(transformer, "fp8_matmul")
    kinds = {name: type(linear_at(transformer, name)) for name in block_linears(transformer)}
    assert kinds.pop("transformer_blocks.0.attn.to_q") is In8Bits
    assert set(kinds.values()) == {MultipliedIn8Bits}


def stored_training(**changes):
    return made_training(made_data([made_sample(0, references=1), made_sample(1)]), **changes)


def exchange(training, kind):
    return exchange_checked(training, lambda: quantise(training.transformer, kind), kind)


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_self_test_passes_sound_forms_and_leaves_the_training_as_it_was(kind, capsys):
    training = stored_training()
    weights = {name: weight.detach().clone() for name, weight in training.weights.items()}
    assert 0.99 <= exchange(training, kind) < 1
    assert f"base in {kind}: gradients agree to a cosine of" in capsys.readouterr().out
    assert all(torch.equal(weight, weights[name]) and weight.grad is None for name, weight in training.weights.items())
    assert training.step == 0 and not training.log
    run_steps(training, 3)
    plain = run_steps(stored_training(), 3)
    for found, true in zip(training.log, plain.log, strict=True):
        assert found.loss == pytest.approx(true.loss, rel=0.05) and found.loss != true.loss


class Forgetful(In8Bits):
    """The planted fault: a right product, but no gradient for the input, as some forms of 8 bits have it."""

    def forward(self, input):
        return super().forward(input.detach())


class Noisy(In8Bits):
    """Another one: the gradient of the input has noise as large as itself."""

    def forward(self, input):
        output = super().forward(input)
        if input.requires_grad:
            input.register_hook(lambda gradient: gradient + torch.randn_like(gradient) * gradient.std())
        return output


@pytest.mark.parametrize("fault", [Forgetful, Noisy])
@pytest.mark.parametrize("where", ["everywhere", "in one block"])
def test_a_form_that_corrupts_gradients_is_refused(monkeypatch, fault, where):
    if where == "everywhere":
        monkeypatch.setitem(KINDS, "fp8", (fault, FLOAT8))
    training = stored_training()

    def corrupt():
        quantise(training.transformer, "fp8")
        if where == "in one block":
            block = training.transformer.single_transformer_blocks[1]
            for module in block.modules():
                if isinstance(getattr(module, "base_layer", None), In8Bits):
                    module.base_layer.__class__ = fault

    with pytest.raises(UserError, match=r"fp8 corrupts the gradients here: their cosine to the true ones is"):
        exchange_checked(training, corrupt, "fp8")


def test_scaled_gradients_and_missing_ones_have_no_false_cosine():
    one = torch.randn(4, 4)
    assert cosine([one], [3 * one]) == pytest.approx(1) and cosine([one], [-one]) == pytest.approx(-1)
    assert cosine([one], []) == 0 and cosine([one], [0 * one]) == 0
    assert block_of("single_transformer_blocks.12.attn.to_out.lora_A.weight") == "single_transformer_blocks.12"


def test_the_probe_reaches_both_factors_of_every_module():
    training = stored_training()
    found = probe(training)
    assert set(found) == set(training.weights) and all(value.abs().max() > 0 for value in found.values())


def test_the_probe_backs_off_like_a_step(monkeypatch, caplog):
    training = stored_training()
    calls = []

    def once(*arguments):
        calls.append(1)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*arguments)

    real = self_test.look
    monkeypatch.setattr(self_test, "look", once)
    with caplog.at_level(logging.WARNING):
        probe(training)
    assert "all blocks are recomputed" in caplog.text and training.transformer.gradient_checkpointing


def test_a_base_that_waits_in_main_memory_changes_no_bit():
    plain, waiting = stored_training(), stored_training()
    hold_in_main_memory(waiting.transformer, torch.device("cpu"))
    layers = [linear_at(waiting.transformer, name) for name in block_linears(waiting.transformer)]
    assert layers and all(isinstance(layer, InMainMemory) for layer in layers)
    held, whole = (sum(value.numel() for value in one.transformer.parameters()) for one in (waiting, plain))
    assert whole - held == sum(layer.in_features * layer.out_features for layer in layers) > 0.7 * whole
    run_steps(plain, 3)
    run_steps(waiting, 3)
    assert [row.loss for row in plain.log] == [row.loss for row in waiting.log]
    assert all(torch.equal(weight, waiting.weights[name]) for name, weight in plain.weights.items())


def last_step(world, out: str) -> Path:
    return world.root / out / "step-000004.safetensors"


def test_a_training_on_a_stored_base_has_its_own_name_and_an_offloaded_one_has_not(photo_world, capsys):
    world = photo_world
    world.encode()
    world.hold_out(1)
    world.encode()
    changes = {"steps": 4, "precision": "bfloat16", "held_out_sigmas": 2}
    assert train(world, "full", **changes).computed == 4
    assert train(world, "fp8", **changes, base_precision="fp8").computed == 4
    assert "gradients agree to a cosine of" in capsys.readouterr().out
    assert train(world, "offloaded", **changes, offload=["base"]).computed == 0
    (world.store.root / "trainings").rename(world.root / "gone")
    assert train(world, "offloaded", **changes, offload=["base"]).computed == 4
    assert sha256_of_file(last_step(world, "offloaded")) == sha256_of_file(last_step(world, "full"))
    full, fp8 = (read_lora(last_step(world, name)).modules for name in ("full", "fp8"))
    flat = [torch.cat([module.B_OR.float().flatten() for _, module in sorted(one.items())]) for one in (full, fp8)]
    assert 0.9 < torch.cosine_similarity(*flat, dim=0) < 1


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"base_precision": "fp8", "offload": ["base"]}, "keeps the base in full"),
        ({"compile": True, "offload": ["base"]}, "compile gains nothing"),
    ],
)
def test_settings_that_do_not_go_together(photo_world, changes, match):
    with pytest.raises(ValueError, match=match):
        photo_world.train_stage(**changes)


def test_the_true_matrices_are_let_go_one_by_one(monkeypatch):
    """While a matrix is brought to 8 bits, those before it are gone: together they would not fit."""
    transformer, alive = tiny_transformer(), []
    matrices = [weakref.ref(linear_at(transformer, name).weight) for name in block_linears(transformer)]

    class Counting(In8Bits):
        def __init__(self, *arguments):
            alive.append(sum(one() is not None for one in matrices))
            super().__init__(*arguments)

    monkeypatch.setitem(KINDS, "fp8", (Counting, FLOAT8))
    quantise(transformer, "fp8")
    count = len(matrices)
    assert len(alive) == count and all(left <= count - place + 1 for place, left in enumerate(alive))


@pytest.mark.parametrize(("capability", "refused"), [((8, 0), True), ((8, 9), False), ((9, 0), False)])
def test_a_gpu_that_cannot_multiply_float8_is_told_before_anything_is_loaded(monkeypatch, capability, refused):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    check_kind("fp8", torch.device("cuda"))
    if not refused:
        check_kind("fp8_matmul", torch.device("cuda"))
        return
    with pytest.raises(UserError, match=r"and this one has 8\.0\. Set fp8"):
        check_kind("fp8_matmul", torch.device("cuda"))
