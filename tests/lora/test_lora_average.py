"""Averages of changes, and the unrolled weights of an exponential moving average."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.lora.conftest import dense, difference, random_module

from likeness.errors import UserError
from likeness.lora.adapter import Lora
from likeness.lora.average import average_loras, ema_weights


@given(st.integers(1, 30), st.floats(0, 0.99), st.lists(st.floats(-5, 5), min_size=30, max_size=30))
def test_ema_weights_are_the_recursion_unrolled(count, decay, values):
    """Oracle: the recursion itself, on numbers."""
    average = values[0]
    for value in values[1:count]:
        average = decay * average + (1 - decay) * value
    weights = ema_weights(count, decay)
    assert sum(weights) == pytest.approx(1, abs=1e-12)
    assert sum(w * value for w, value in zip(weights, values[:count], strict=True)) == pytest.approx(average, abs=1e-9)


def test_mean_is_of_changes_and_not_of_factors():
    modules = [random_module(4, seed=seed, scale=1 + seed) for seed in range(3)]
    average = average_loras([Lora({"a": module}) for module in modules])
    found, expected = average.lora().modules["a"], sum(dense(module) for module in modules) / 3
    assert difference(expected, dense(found)) < 1e-6 and found.rank == 12
    mean_up = sum(module.scale * module.B_OR for module in modules) / 3
    mean_down = sum(module.A_RI for module in modules) / 3
    assert difference(expected, mean_up @ mean_down) > 0.5
    assert average.about["operation"] == "average"


def test_checkpoints_that_are_alike_average_to_themselves_at_their_rank():
    lora = Lora({"a": random_module(4, scale=0.5)})
    for weights in (None, ema_weights(3, 0.5)):
        module, row = average_loras([lora] * 3, weights, rank=4).operate("a")
        assert difference(dense(lora.modules["a"]), dense(module)) < 1e-6
        assert module.rank == 4 and row["retained_energy"] == pytest.approx(1.0)
    last = average_loras([lora, lora], ema_weights(2, 0.0)).lora().modules["a"]
    assert last.rank == 4


def test_what_is_no_average_is_named():
    lora = Lora({"a": random_module(2)})
    with pytest.raises(UserError, match=r"sum to 1\.5; they must sum to 1"):
        average_loras([lora, lora], [1.0, 0.5])
    with pytest.raises(UserError, match="at least one LoRA"):
        average_loras([])
    for decay in (1.0, -0.1):
        with pytest.raises(UserError, match=r"ema: .* is not allowed"):
            ema_weights(3, decay)
