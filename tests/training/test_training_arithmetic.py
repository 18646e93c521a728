"""Kernels that repeat their bits are asked for wherever there are any, and no bit of the CPU changes."""

from __future__ import annotations

import os

import pytest
import torch

from likeness.tables import read_rows
from likeness.training.arithmetic import WORKSPACE, choose_arithmetic, leave_arithmetic
from likeness.training.base import open_base
from likeness.training.data import load_samples
from likeness.training.run import prepare


@pytest.fixture(autouse=True)
def as_found(monkeypatch):
    monkeypatch.setenv(WORKSPACE, "anything")
    leave_arithmetic()
    yield
    leave_arithmetic()


def test_every_training_forbids_kernels_that_do_not_repeat_their_bits(photo_world):
    world = photo_world
    world.encode()
    stage = world.train_stage()
    base = open_base(stage.base_model, offline=True)
    prepare(
        base, stage.training, load_samples(read_rows(world.encoded), stage.training, world.store, base.device), None
    )
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled(), "attention's gradient repeats its bits only then"
    assert os.environ[WORKSPACE] == ":4096:8", "with another one torch refuses every product on a GPU"


def test_losses_on_pictures_may_use_kernels_that_have_no_exact_counterpart(monkeypatch):
    monkeypatch.setenv(WORKSPACE, ":16:8")
    choose_arithmetic("bfloat16", with_pictures=True)
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert os.environ[WORKSPACE] == ":16:8", "what repeats its bits is left"


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_tf32_is_for_gpus_alone_and_only_beside_a_base_of_fewer_bits(precision):
    left, right = (torch.randn(96, 96, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    before = left @ right
    choose_arithmetic(precision, with_pictures=False)
    assert torch.backends.cuda.matmul.allow_tf32 == (precision == "bfloat16")
    assert torch.equal(left @ right, before)
    assert torch.backends.mkldnn.matmul.fp32_precision not in ("tf32", "bf16")  # pyright: ignore
