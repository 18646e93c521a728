"""What only makes a step faster or smaller leaves its result alone."""

from __future__ import annotations

import pytest
import torch
from diffusers.models import attention_dispatch
from tests.training.test_training_loop import made_data, made_sample, made_training, run_steps

from likeness.config.training import ONLY_SPEED, TrainingSettings
from likeness.errors import UserError
from likeness.training.base import open_base
from likeness.training.frozen import InMainMemory, block_linears, linear_at
from likeness.training.losses.identity import decode
from likeness.training.speed import load_transformer, load_vae, speed_up
from likeness.training.train import training_key


def fresh(**changes):
    return made_training(made_data([made_sample(0, references=1), made_sample(1)]), **changes)


def same(one, other) -> None:
    for first, second in zip(one.log, other.log, strict=True):
        assert second.loss == pytest.approx(first.loss, rel=1e-5)
        assert second.grad_norm == pytest.approx(first.grad_norm, rel=1e-4)


@pytest.mark.parametrize("kernel", ["math", "flash"])
def test_another_kernel_of_the_attention_gives_the_same_steps(kernel):
    plain, other = fresh(), fresh(attention=kernel)
    speed_up(other.transformer, other.settings)
    same(run_steps(plain, 3), run_steps(other, 3))


def test_a_kernel_that_is_not_there_is_refused():
    training = fresh(attention="efficient")
    with pytest.raises(UserError, match=r"training\.attention: efficient does not work here .* Set native"):
        speed_up(training.transformer, training.settings)


def test_a_kernel_without_a_gradient_is_refused(monkeypatch):
    monkeypatch.setattr(attention_dispatch, "dispatch_attention_fn", lambda query, *_, **__: query.detach())
    training = fresh(attention="math")
    with pytest.raises(UserError, match=r"training\.attention: math does not work here .* Set native"):
        speed_up(training.transformer, training.settings)


@pytest.mark.parametrize("kernel", ["flash_3", "cudnn"])
def test_a_kernel_that_cannot_train_is_no_choice(kernel):
    with pytest.raises(ValueError, match="attention"):
        TrainingSettings.model_validate({"attention": kernel})


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"gradient_checkpointing": True, "checkpoint_every": 2}])
def test_compiled_blocks_give_the_same_steps(changes):
    plain, compiled = fresh(**changes), fresh(compile=True, **changes)
    speed_up(compiled.transformer, compiled.settings)
    blocks = [*compiled.transformer.transformer_blocks, *compiled.transformer.single_transformer_blocks]
    assert all(block._compiled_call_impl is not None for block in blocks)
    same(run_steps(plain, 3), run_steps(compiled, 3))


def test_the_base_waits_in_main_memory_where_it_is_offloaded_or_stored_in_8_bits(tiny_folder):
    for changes in ({"offload": ["base"]}, {"base_precision": "int8"}):
        settings = TrainingSettings.model_validate({"precision": "float32", **changes})
        base = open_base(one_model(tiny_folder), offline=True)
        transformer = load_transformer(base, settings)
        assert "transformer" not in base.__dict__, "the whole was never on the device"
        assert all(isinstance(linear_at(transformer, name), InMainMemory) for name in block_linears(transformer))
    base = open_base(one_model(tiny_folder), offline=True)
    assert load_transformer(base, TrainingSettings()) is base.transformer


def one_model(folder):
    from likeness.config.base import ModelSource

    return ModelSource(source=str(folder))


def test_a_vae_that_waits_decodes_the_same_with_the_same_gradient(tiny_folder):
    settings = TrainingSettings.model_validate({"offload": ["vae"]})
    waiting = load_vae(open_base(one_model(tiny_folder), offline=True), settings)
    plain = load_vae(open_base(one_model(tiny_folder), offline=True), TrainingSettings())
    held = [parameter.device.type for parameter in waiting.decoder.parameters()]
    assert set(held) == {"meta"}, "its weights are on no device until they are used"
    gradients = []
    for vae in (plain, waiting):
        latents = torch.randn(16, 3, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
        image = torch.utils.checkpoint.checkpoint(decode, vae, latents, use_reentrant=False)
        (image**2).sum().backward()
        gradients.append(latents.grad)
    assert torch.equal(*gradients) and gradients[0].abs().max() > 0


def test_settings_of_speed_are_no_part_of_a_trainings_name():
    plain = training_key([], TrainingSettings(gradient_accumulation=2), "base", None)
    changes = {
        "gradient_checkpointing": True,
        "checkpoint_every": 2,
        "processes": 2,
        "offload": ("vae",),
        "compile": True,
        "attention": "math",
    }
    assert set(changes) == set(ONLY_SPEED)
    for name, value in changes.items():
        settings = TrainingSettings.model_validate({"gradient_accumulation": 2, name: value})
        assert training_key([], settings, "base", None) == plain, name
        assert settings != TrainingSettings(gradient_accumulation=2)
