"""LoKr read as LoRA: against the Kronecker product itself, LyCORIS' formula, and the best approximation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.lora.conftest import dense, difference

from likeness.lora.formats import outline_lora, parse_lora
from likeness.lora.lokr import lokr_module


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
