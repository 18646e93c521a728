"""LoKr read as LoRA: against the Kronecker product itself, LyCORIS' formula, and the best approximation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tests.lora.conftest import dense, difference

from likeness.errors import UserError
from likeness.klein.family import KLEIN_4B
from likeness.lora.adapter import Lora
from likeness.lora.files import save_lora, verify_lora, write_tensors
from likeness.lora.formats import outline_lora, parse_lora
from likeness.lora.lokr import lokr_module, lokr_tensors
from likeness.lora.operation import write_operation
from likeness.lora.resize import RankRule, resize_lora


def lokr(whole, sizes=((3, 2), (4, 5)), rank=2, seed=0):
    """Tensors of a LoKr whose matrices are whole or products, and the Kronecker product by its definition."""
    generator = torch.Generator().manual_seed(seed)
    parts, matrices = {}, []
    for side, (rows, columns), is_whole in zip(("w1", "w2"), sizes, whole, strict=True):
        if is_whole:
            parts[side] = torch.randn(rows, columns, generator=generator)
            matrices.append(parts[side].double())
        else:
            parts[f"{side}_a"] = torch.randn(rows, rank, generator=generator)
            parts[f"{side}_b"] = torch.randn(rank, columns, generator=generator)
            matrices.append(parts[f"{side}_a"].double() @ parts[f"{side}_b"].double())
    (o1, i1), (o2, i2) = sizes
    built = torch.einsum("ab,cd->acbd", *matrices).reshape(o1 * o2, i1 * i2)
    return parts, built


@settings(max_examples=30, deadline=None)
@given(
    st.tuples(st.booleans(), st.booleans()),
    st.tuples(st.tuples(st.integers(1, 5), st.integers(1, 5)), st.tuples(st.integers(1, 6), st.integers(1, 6))),
    st.integers(1, 3),
    st.integers(0, 99),
)
def test_lokr_is_its_kronecker_product(whole, sizes, rank, seed):
    parts, built = lokr(whole, sizes, rank, seed)
    parts["alpha"] = torch.tensor(3.0)
    module = lokr_module(parts, None, "file")
    scale = 1.0 if all(whole) else 3.0 / rank
    assert module.scale == pytest.approx(scale) and difference(scale * built, dense(module)) < 1e-5
    if whole == (False, False):
        assert module.rank == rank * rank


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_approximation_is_the_best_of_its_rank(rank):
    """Oracle: Eckart–Young by torch's full SVD of the built product."""
    parts, built = lokr((True, True), ((4, 3), (5, 6)))
    module = lokr_module(parts, rank, "file")
    lost = float(torch.linalg.svdvals(built)[rank:].norm())
    assert module.rank == rank and float((dense(module) - built).norm()) == pytest.approx(lost, rel=1e-5)
    assert lokr_module(parts, 99, "file").rank == 15


@pytest.mark.parametrize(
    "stem", ["diffusion_model.double_blocks.0.img_attn.qkv", "lycoris_double_blocks_0_img_attn_qkv"]
)
def test_fused_lokr_of_either_naming_is_split(stem):
    parts, built = lokr((True, False), ((6, 4), (32, 16)))
    tensors = {f"{stem}.lokr_{side}": tensor for side, tensor in parts.items()}
    found = parse_lora({**tensors, f"{stem}.alpha": torch.tensor(4.0, dtype=torch.bfloat16)}, {}, "file")
    names = [f"transformer_blocks.0.attn.to_{c}" for c in "qkv"]
    assert set(found.modules) == set(names)
    assert difference(2 * built, torch.cat([dense(found.modules[name]) for name in names])) < 1e-6
    small = outline_lora(tensors, {}, "file", lokr_rank=2)
    assert small.modules[names[0]].rank == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rank", [None, 30])
def test_factors_of_half_types_are_not_rounded_and_are_written_in_their_type(dtype, rank, tmp_path):
    """Oracle: the product of the rounded parts in float64; cut to its rank, it must lose nothing either."""
    parts, _ = lokr((True, False), ((6, 5), (32, 16)), rank=6)
    parts = {side: part.to(dtype) for side, part in parts.items()}
    built = torch.kron(parts["w1"].double(), parts["w2_a"].double() @ parts["w2_b"].double())
    module = lokr_module(parts, rank, "file")
    assert difference(built, dense(module)) < 1e-6 and module.file_type == dtype
    assert {factor.dtype for factor in module[:2]} == {torch.float32}
    name = "transformer_blocks.0.attn.to_q"
    save_lora(tmp_path / "x.safetensors", Lora({name: module}), {})
    write_operation(tmp_path / "y.safetensors", resize_lora(Lora({name: module}), RankRule(3)), {})
    for file in "xy":
        assert {tensor.dtype for tensor in load_file(tmp_path / f"{file}.safetensors").values()} == {dtype}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_lokr_of_any_type_arrives_in_diffusers_as_it_is_read(dtype, tmp_path):
    parts, _ = lokr((True, False), ((8, 8), (384, 384)), rank=16)
    shrunk = {side: (0.02 * part).to(dtype) for side, part in parts.items()}
    path, name = tmp_path / "x.safetensors", "transformer_blocks.0.attn.to_q"
    write_tensors(path, lokr_tensors({name: shrunk}, {name: 1.0}), {})
    assert verify_lora(path, KLEIN_4B, 1).scale == 1.0


def test_a_lokr_of_too_high_a_rank_is_told_the_program_that_approximates_it():
    parts, _ = lokr((True, True), ((30, 30), (30, 30)))
    with pytest.raises(UserError, match=r"scripts/convert_lora\.py IN OUT --format diffusers --lokr-rank 64"):
        lokr_module(parts, None, "file")
