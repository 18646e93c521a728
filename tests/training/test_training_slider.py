"""Image sliders: two strengths in one graph, with and without recomputed blocks, against both branches written out."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch
from pydantic import ValidationError
from tests.tiny import tiny_transformer
from tests.training.test_training_loop import in_double, made_data, made_sample, made_training, normal, run_steps
from tests.training.test_training_memory import fail_at
from tests.training.test_training_train import Killed, bytes_of, kill_at, train, verify_once  # noqa: F401

from likeness.config.subject import Subject
from likeness.config.training import TrainingSettings
from likeness.errors import UserError
from likeness.klein.libraries import BaseTunerLayer
from likeness.klein.velocity import predict_velocity
from likeness.tables import read_rows
from likeness.training import memory
from likeness.training.adapter import AdapterScales
from likeness.training.encode import read_tensors
from likeness.training.loop import draw_samples, gradients, look

STRENGTH = 1.5
SLIDER = {"image_slider": {"prompt": "a person", "strength": STRENGTH}}
ALONE = {**SLIDER, "velocity": {"weight": 0.0}}
KINDS = ("lora", "dora", "lokr")
ENCODED = {"sources": True, "prompts": ("a person",)}


def pair(index: int, references: int = 1, masked: bool = False):
    source_LC = normal(index, "source", shape=(16, 16))
    return replace(made_sample(index, references, masked=masked), source_LC=source_LC)


def made(kind: str = "lora", losses=ALONE, **changes):
    """A training of two pairs whose adapter already does something, with alphas that are not the ranks."""
    values = {"batch_size": 2, "alpha": 2.0, "learning_rate": 1e-3, **changes}
    alphas = {"alphas": {"single_all": 3.0}} if kind == "lora" else {}
    data = made_data([pair(0), pair(1, masked=True)])
    training = made_training(data, losses=losses, adapter={"kind": kind, **alphas}, **values)
    with torch.no_grad():
        for name, weight in training.weights.items():
            weight.add_(0.1 * normal("moved", name, shape=tuple(weight.shape)))
    return in_double(training)


def grads_of(training) -> dict[str, torch.Tensor]:
    training.forget_gradients()
    gradients(training, training.step_batches(training.step))
    return {name: weight.grad.clone() for name, weight in training.weights.items()}


def seen_of(training):
    ids = [list(training.data.samples)]
    return look(training, ids[0], draw_samples(training, ids)[0])


def branch_error(transformer, seen, prompt_TD, clean_BLC) -> torch.Tensor:
    """One side of the loss by the formula alone: noise, prediction without references, weighted mean of squares."""
    batch, sigma_B11 = seen.batch, seen.sigma_B[:, None, None]
    noisy_BLC = (1 - sigma_B11) * clean_BLC + sigma_B11 * seen.noise_BLC
    text_BTD = torch.stack([prompt_TD] * len(seen.sigmas)).to(batch.embeddings_BTD.dtype)
    predicted = predict_velocity(transformer, noisy_BLC, seen.sigma_B, text_BTD, batch.target_ids, batch.text_ids)
    error_BL = (predicted - (seen.noise_BLC - clean_BLC)).square().mean(dim=-1)
    return (batch.weights_BL * error_BL).sum(dim=1) / batch.weights_BL.sum(dim=1)


def test_without_effect_it_is_the_plain_error_of_both_pictures():
    training = made_training(made_data([pair(0), pair(1, masked=True)]), losses=ALONE, batch_size=2)
    seen, prompt_TD = seen_of(training), training.data.prompts["a person"]
    with torch.no_grad():
        clean = (seen.batch.latents_BLC, seen.batch.source_BLC)
        expected = sum(branch_error(tiny_transformer(seed=1), seen, prompt_TD, one) for one in clean)
    (term,) = [term for term in training.objective.terms if term.name == "image_slider"]
    assert torch.allclose(term.values(seen), expected, rtol=1e-4)
    row = run_steps(training, 1).log[0]
    assert row.loss == pytest.approx(row.losses["image_slider"], rel=1e-6)


def set_strength(transformer, strength: float) -> None:
    """peft's own way to a strength."""
    for layer in transformer.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.set_scale("default", strength)


@pytest.mark.parametrize("kind", KINDS)
def test_its_gradient_is_that_of_both_branches(kind):
    training = made(kind)
    found = grads_of(training)
    training.forget_gradients()
    (ids,) = training.step_batches(0)
    seen, prompt_TD = look(training, ids, draw_samples(training, [ids])[0]), training.data.prompts["a person"]
    for strength, clean_BLC in ((STRENGTH, seen.batch.latents_BLC), (-STRENGTH, seen.batch.source_BLC)):
        set_strength(training.transformer, strength)
        branch_error(training.transformer, seen, prompt_TD, clean_BLC).mean().backward()
    for name, weight in training.weights.items():
        assert weight.grad is not None and torch.allclose(found[name], weight.grad, atol=1e-6), name
        assert found[name].abs().max() > 0, name


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_recomputed_blocks_are_recomputed_at_the_strength_at_which_they_ran(kind, every, monkeypatch):
    expected = grads_of(made(kind))
    checkpointed = partial(made, kind, gradient_checkpointing=True, checkpoint_every=every)
    found = grads_of(checkpointed())
    assert max(float((found[name] - grad).abs().max()) for name, grad in expected.items()) < 1e-6
    monkeypatch.setattr(memory, "AdapterScales", lambda block: nullcontext())
    wrong = grads_of(checkpointed())
    assert max(float((wrong[name] - grad).abs().max()) for name, grad in expected.items()) > 1e-4


def test_blocks_are_recomputed_for_every_term_of_a_watched_sum():
    """The terms' gradients are taken one after the other from one graph, so a block is recomputed more than once."""
    losses = {**SLIDER, "output_preservation": {}, "slider": {"target": "a", "positive": "b", "negative": "c"}}
    plain, again = made(losses=losses), made(losses=losses, gradient_checkpointing=True)
    expected, found = grads_of(plain), grads_of(again)
    assert max(float((found[name] - grad).abs().max()) for name, grad in expected.items()) < 1e-6
    assert again.objective.grad_ratios() == pytest.approx(plain.objective.grad_ratios(), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_that_are_recomputed_for_want_of_memory_change_nothing(kind, monkeypatch):
    whole = run_steps(made(kind, batch_size=1), 3)
    fail_at(monkeypatch, 2)
    again = run_steps(made(kind, batch_size=1), 3)
    assert again.back_off.every == 1
    for name, weight in whole.weights.items():
        assert (weight - again.weights[name]).abs().max() < 1e-6, name


@pytest.mark.parametrize("kind", KINDS)
def test_strengths_multiply_and_are_put_back(kind):
    training = made(kind)
    layers = [layer for layer in training.transformer.modules() if isinstance(layer, BaseTunerLayer)]
    before = [layer.scaling["default"] for layer in layers]
    assert len({*before}) == (2 if kind == "lora" else 1)
    twice = AdapterScales(training.transformer, 2.0)
    with pytest.raises(KeyError), twice:
        assert [layer.scaling["default"] for layer in layers] == [2.0 * scale for scale in before]
        with AdapterScales(training.transformer, -0.5), twice:
            assert [layer.scaling["default"] for layer in layers] == [2.0 * scale for scale in before]
        raise KeyError
    assert [layer.scaling["default"] for layer in layers] == before


def test_a_strength_is_the_files_own(photo_world):
    """At strength s the trained model is what evaluation draws with a LoRA at s, on both sides of 0."""
    training = made("lora")
    seen = seen_of(training)
    for strength in (-1.0, 0.5):
        with torch.no_grad(), AdapterScales(training.transformer, strength):
            found = seen.predict()
        with torch.no_grad():
            by_hand = tiny_transformer(seed=1).double()
            for name, module in by_hand.named_modules():
                if f"{name}.lora_A.weight" in training.weights:
                    down, up = (training.weights[f"{name}.lora_{side}.weight"] for side in "AB")
                    alpha = 3.0 if name.startswith("single") else 2.0
                    module.weight += strength * alpha / 4 * up @ down
            expected = replace(seen, transformer=by_hand).predict()
        assert torch.allclose(found, expected, atol=1e-6)


def test_up_leads_to_the_target_and_down_to_the_source():
    """Errors of both pictures at both strengths, on levels and noise that training did not draw."""
    losses = {"velocity": {"weight": 0.0}, "image_slider": {"prompt": "a person"}}
    training = made_training(made_data([pair(0)]), losses=losses, learning_rate=1e-2, steps=60)
    run_steps(training, 60)
    training.step = 1000
    seen, prompt_TD = seen_of(training), training.data.prompts["a person"]
    found = {}
    with torch.no_grad():
        for sign in (1.0, -1.0):
            with AdapterScales(training.transformer, sign):
                found[sign] = [
                    float(branch_error(training.transformer, seen, prompt_TD, one))
                    for one in (seen.batch.latents_BLC, seen.batch.source_BLC)
                ]
    assert found[1.0][0] < found[-1.0][0] and found[-1.0][1] < found[1.0][1]


def test_sources_are_encoded_in_the_buckets_of_their_targets(pair_world):
    world = pair_world
    world.encode()
    assert {row["source_latents_sha256"] for row in read_rows(world.encoded)} == {None}
    world.encode(**ENCODED, mirrored=True)
    rows = read_rows(world.encoded)
    hashes = [row[name] for row in rows for name in ("latents_sha256", "source_latents_sha256")]
    tensors = read_tensors(world.store, hashes)
    for row in rows:
        target, source = (tensors[row[name]] for name in ("latents_sha256", "source_latents_sha256"))
        assert target.shape == source.shape and not torch.equal(target, source)
    plain, mirrored = ([row for row in rows if row["mirrored"] == side] for side in (False, True))
    assert not {row["source_latents_sha256"] for row in plain} & {row["source_latents_sha256"] for row in mirrored}


def test_a_training_needs_its_sources_and_then_resumes_to_the_same_bytes(pair_world, monkeypatch):
    world = pair_world
    changes = {"batch_size": 2, "gradient_accumulation": 2, "flip": 0.5, "losses": ALONE, "held_out_sigmas": 2}
    world.hold_out(1)
    world.encode(prompts=("a person",), mirrored=True)
    with pytest.raises(UserError, match="lacks prompts or sources"):
        train(world, "straight", **changes)
    world.encode(**ENCODED, mirrored=True)
    assert train(world, "straight", **changes).computed == 6
    log = read_rows(world.root / "straight" / "log.parquet")
    assert all(row["loss"] == pytest.approx(row["loss_image_slider"]) and row["loss_velocity"] > 0 for row in log)
    assert log[-1]["held_out_loss"] > 0
    (world.store.root / "trainings").rename(world.root / "gone")
    with monkeypatch.context() as patch:
        kill_at(patch, "likeness.training.loop.train_step", 4)
        with pytest.raises(Killed):
            train(world, "killed", **changes)
    again = train(world, "killed", **changes)
    assert again.computed == 4 and bytes_of(world.root / "killed") == bytes_of(world.root / "straight")


@pytest.mark.parametrize("buckets", [{}, {"diptych": True}])
def test_diptychs_have_no_sources_apart(buckets):
    losses = {**SLIDER, "velocity": {"region": "right_half"}}
    with pytest.raises(ValidationError, match="source and target apart"):
        TrainingSettings.model_validate({"losses": losses, "buckets": buckets})


def test_photos_have_no_sources():
    with pytest.raises(ValidationError, match=r"has no sources; take losses\.slider"):
        Subject.model_validate({"trigger": "t0k", "photos": "data", "training": {"losses": SLIDER}})
