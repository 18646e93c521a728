"""Subtraction and projection against the changes built in full."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.lora.conftest import dense, difference, random_module

from likeness.errors import UserError
from likeness.lora.adapter import Lora
from likeness.lora.operation import write_operation
from likeness.lora.subtract import input_directions, project_out, subtract_lora


def loras():
    full = Lora({"a": random_module(4, scale=0.5), "b": random_module(3, seed=1)})
    return full, Lora({"a": random_module(2, scale=2.0, seed=2), "c": random_module(2, seed=3)})


def test_difference_is_exact_and_keeps_modules_of_either():
    full, background = loras()
    found = subtract_lora(full, background, 0.3)
    result = found.lora().modules
    assert set(result) == {"a", "b", "c"} and result["a"].rank == 6
    assert difference(dense(full.modules["a"]) - 0.3 * dense(background.modules["a"]), dense(result["a"])) < 1e-6
    assert torch.equal(dense(result["b"]), dense(full.modules["b"]))
    assert difference(-0.3 * dense(background.modules["c"]), dense(result["c"])) < 1e-6
    rows = {row["module"]: row for row in found.rows()}
    assert rows["a"]["norm_before"] == pytest.approx(float(dense(full.modules["a"]).norm()))
    assert rows["a"]["norm_after"] == pytest.approx(float(dense(result["a"]).norm()))
    assert rows["c"]["norm_before"] == 0 and rows["c"]["rank_before"] == 0


def test_peft_subtracts_the_same(two_adapters):
    """Oracle: PEFT's cat with a negative weight."""
    theirs = two_adapters.merged([1.0, -0.5], "cat")
    ours = subtract_lora(two_adapters.loras["a"], two_adapters.loras["b"], 0.5).lora()
    assert all(difference(theirs[name], dense(module)) < 1e-6 for name, module in ours.modules.items())


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.integers(1, 9),
    st.floats(-3, 3).filter(lambda scale: abs(scale) > 1e-3),
    st.integers(0, 999),
)
def test_a_lora_minus_itself_is_nothing(dtype, rank, scale, seed):
    lora = Lora({"a": random_module(rank, scale=scale, seed=seed, dtype=dtype)})
    found = subtract_lora(lora, lora, 1.0)
    rest = found.lora().modules["a"]
    assert torch.equal(rest.B_OR[:, :rank], -rest.B_OR[:, rank:]) and torch.equal(rest.A_RI[:rank], rest.A_RI[rank:])
    assert dense(rest).abs().max() < 1e-14 * dense(lora.modules["a"]).abs().max()
    assert found.rows()[0]["norm_after"] < 1e-6 * found.rows()[0]["norm_before"]


def test_nothing_subtracted_is_the_full_lora_bit_for_bit():
    full, background = loras()
    for found in (subtract_lora(full, background, 0.0).lora(), project_out(full, background, 2, 0.0).lora()):
        assert found.modules.keys() == full.modules.keys()
        assert all(torch.equal(dense(full.modules[name]), dense(module)) for name, module in found.modules.items())


def test_projection_removes_what_the_background_reads():
    """Oracle: V from torch's full SVD of the built background; W − α·W·V·Vᵀ built in full."""
    full, background = loras()
    for rank, alpha in ((1, 1.0), (2, 1.0), (5, 0.25)):
        result = project_out(full, background, rank, alpha).lora().modules
        built = dense(full.modules["a"])
        directions = torch.linalg.svd(dense(background.modules["a"]))[2][: min(rank, 2)]
        expected = built - alpha * built @ directions.T @ directions
        assert difference(expected, dense(result["a"])) < 1e-6 and result["a"].rank == 4
        assert result.keys() == {"a", "b"} and result["b"] is full.modules["b"]
        if alpha == 1:
            assert (dense(result["a"]) @ directions.T).abs().max() < 1e-5
        twice = project_out(Lora(result), background, rank, alpha).lora().modules
        assert alpha < 1 or difference(dense(result["a"]), dense(twice["a"])) < 1e-6


def test_directions_are_orthonormal_and_only_real_ones():
    module = random_module(5, decay=0.5)
    rows_KI = input_directions(module, 3)
    assert torch.allclose(rows_KI @ rows_KI.T, torch.eye(3, dtype=torch.float64), atol=1e-9)
    zero = module._replace(B_OR=torch.zeros_like(module.B_OR))
    assert len(input_directions(zero, 3)) == 0 and len(input_directions(module, 9)) == 5


def test_a_result_of_nothing_is_refused_and_leaves_no_file(tmp_path):
    full, background = loras()
    zero = Lora({"a": full.modules["a"]._replace(B_OR=torch.zeros(40, 4))})
    with pytest.raises(UserError, match="would change nothing"):
        write_operation(tmp_path / "x.safetensors", subtract_lora(zero, background, 0.0), {})
    for lora in (full, full.cast(torch.bfloat16)):
        with pytest.raises(UserError, match="its parts cancel each other"):
            write_operation(tmp_path / "x.safetensors", subtract_lora(lora, lora, 1.0), {})
    assert list(tmp_path.iterdir()) == []
    write_operation(tmp_path / "x.safetensors", subtract_lora(full, full, 0.999), {})


def test_settings_that_cannot_be_meant():
    full, background = loras()
    with pytest.raises(UserError, match="alpha: nan is not a number"):
        subtract_lora(full, background, float("nan"))
    with pytest.raises(UserError, match="project: 0 is not allowed"):
        project_out(full, background, 0)
