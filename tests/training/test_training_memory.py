"""Running out of memory at any micro-batch ends with the weights of a run that never did; recomputing changes nothing."""

from __future__ import annotations

import logging

import pytest
import torch
from tests.training.test_training_loop import in_double, made_data, made_sample, made_training, run_steps

from likeness.errors import UserError
from likeness.training.losses.objective import Objective
from likeness.training.memory import BackOff


def fail_at(monkeypatch, *calls: int) -> None:
    """Run out of memory in these backward passes, counted from 1, after gradients were already added."""
    real, done = Objective.backward, []

    def backward(self, terms, weights, step):
        done.append(step)
        real(self, terms, weights, step)
        if len(done) in calls:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Objective, "backward", backward)


def made(**changes):
    samples = [made_sample(index, masked=index % 2 == 0) for index in range(8)]
    values = {"batch_size": 4, "gradient_accumulation": 2, "learning_rate": 1e-3, **changes}
    return in_double(made_training(made_data(samples), **values))


@pytest.mark.parametrize("calls", [(1,), (2,), (3,), (4,), (1, 2), (2, 5)])
def test_a_step_that_ran_out_of_memory_is_taken_again_in_parts(monkeypatch, caplog, calls):
    whole = run_steps(made(), 3)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        fail_at(patch, *calls)
        split = run_steps(made(), 3)
    assert split.back_off.parts == 2 ** len(calls)
    assert caplog.text.count("the step's batch stays the same") == len(calls)
    for one, other in zip(whole.log, split.log, strict=True):
        assert one.samples == other.samples and one.sample_sigmas == other.sample_sigmas
        assert one.loss == pytest.approx(other.loss, abs=1e-7)
    for name, weight in whole.weights.items():
        assert (weight - split.weights[name]).abs().max() < 1e-6, name


def test_with_nothing_left_to_split_all_blocks_are_recomputed_and_then_it_is_an_error(monkeypatch, caplog):
    whole = run_steps(made(batch_size=1), 2)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        fail_at(patch, 1)
        again = run_steps(made(batch_size=1), 2)
        assert "all blocks are recomputed" in caplog.text and again.transformer.gradient_checkpointing
        assert all((weight - again.weights[name]).abs().max() < 1e-6 for name, weight in whole.weights.items())
    fail_at(monkeypatch, 1, 2)
    with pytest.raises(UserError, match="out of memory with one sample at a time"):
        run_steps(made(batch_size=1), 2)


def test_parts_are_as_equal_as_can_be_and_keep_the_order():
    assert BackOff(None, 8, parts=2).split([list("abcde"), list("f")]) == [list("ab"), list("cde"), ["f"]]
    assert BackOff(None, 8, parts=8).split([list("abc")]) == [["a"], ["b"], ["c"]]


@pytest.mark.parametrize("every", [1, 2, 5])
def test_recomputed_blocks_give_the_same_gradients_and_only_they_are_run_twice(every):
    samples = [made_sample(0, references=1)]
    plain = run_steps(made_training(made_data(samples)), 2)
    again = made_training(made_data(samples), gradient_checkpointing=True, checkpoint_every=every)
    runs = []
    for block in [*again.transformer.transformer_blocks, *again.transformer.single_transformer_blocks]:
        block.register_forward_pre_hook(lambda *_: runs.append(1))
    run_steps(again, 2)
    recomputed = len(range(0, 5, every))
    assert len(runs) == 2 * (5 + recomputed)
    assert [row.loss for row in plain.log] == pytest.approx([row.loss for row in again.log], abs=1e-6)
    for name, weight in plain.weights.items():
        assert torch.allclose(weight, again.weights[name], atol=1e-6)
