"""Sums and spectra of factors against the changes built and decomposed in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.lora.conftest import dense, difference, random_module

from likeness.errors import UserError
from likeness.lora.adapter import LoraModule
from likeness.lora.factors import energy, inner, spectrum, weighted_sum, widest


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 30), st.integers(1, 30), st.floats(0.2, 1.0), st.integers(0, 2**31))
def test_spectrum_is_that_of_the_built_change_at_any_shape(rank, outputs, inputs, decay, seed):
    """Oracle: torch's full SVD in float64; ranks above the matrix's sides included."""
    module = random_module(rank, outputs, inputs, scale=-0.7, seed=seed, decay=decay, dtype=torch.float64)
    found, built = spectrum(module), dense(module)
    true_K = torch.linalg.svdvals(built)
    count = min(rank, len(true_K))
    assert torch.allclose(found.singular_K[:count], true_K[:count], atol=1e-6 * float(true_K[0]))
    assert float(found.singular_K[count:].sum()) <= 1e-6 * float(true_K[0])
    assert found.energy == pytest.approx(float(built.square().sum()), rel=1e-8)


@pytest.mark.parametrize("rank", [1, 2, 5, 7])
def test_truncation_is_the_best_of_its_rank(rank):
    """Oracle: Eckart–Young, the distance is the root of the sum of squares of what was left out."""
    module = random_module(8, scale=2.5, decay=0.6)
    found = spectrum(module)
    cut, built = found.truncated(rank), dense(module)
    assert cut.rank == rank and cut.scale == 2.5 and cut.A_RI.dtype == torch.float32
    left_out = float(torch.linalg.svdvals(built)[rank:].square().sum()) ** 0.5
    assert float((dense(cut) - built).norm()) == pytest.approx(left_out, rel=1e-4)
    assert 1 - found.retained(rank) == pytest.approx(left_out**2 / float(built.square().sum()), rel=1e-6)
    up, singular_K, down = torch.linalg.svd(built)
    assert difference(up[:, :rank] * singular_K[:rank] @ down[:rank], dense(cut)) < 1e-6


def test_truncation_to_its_own_rank_is_the_module_itself():
    module = random_module(5, dtype=torch.bfloat16)
    assert spectrum(module).truncated(5) is module and spectrum(module).truncated(9) is module


def test_factors_share_the_weight_evenly():
    module = random_module(6, decay=0.3)
    cut = spectrum(module._replace(B_OR=module.B_OR * 1e-4, A_RI=module.A_RI * 1e4)).truncated(4)
    assert torch.allclose(cut.B_OR.norm(dim=0), cut.A_RI.norm(dim=1), rtol=1e-5)


@pytest.mark.parametrize("spread", [1.0, 1e-3, 1e-6, 1e-9])
def test_badly_scaled_and_dependent_factors(spread):
    """One LoRA beside itself at another size of factors: columns that depend on each other, norms far apart."""
    module = random_module(4, dtype=torch.float64, decay=0.5)
    resized = LoraModule(module.A_RI / spread, module.B_OR * spread, module.scale)
    both = weighted_sum([module, resized], [1.0, 1.0])
    found = spectrum(both)
    true_K = 2 * torch.linalg.svdvals(dense(module))
    assert torch.allclose(found.singular_K[:4], true_K[:4], rtol=1e-6)
    assert float(found.singular_K[4:].sum()) < 1e-6 * float(true_K[0])
    assert difference(2 * dense(module), dense(found.truncated(4))) < 1e-6


def test_a_change_of_nothing():
    module = random_module(3)._replace(B_OR=torch.zeros(40, 3))
    found = spectrum(module)
    assert found.energy == 0 and found.retained(1) == 1.0 and not dense(found.truncated(2)).any()
    assert spectrum(random_module(3, scale=0.0)).energy == 0


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 6), st.floats(-2, 2), st.floats(0.01, 3)), min_size=1, max_size=4),
    st.integers(0, 99),
)
def test_weighted_sum_is_exact_in_any_order(parts, seed):
    modules = [
        random_module(rank, scale=scale, seed=seed + index, dtype=torch.float64)
        for index, (rank, _, scale) in enumerate(parts)
    ]
    weights = [weight for _, weight, _ in parts]
    expected = sum(weight * dense(module) for module, weight in zip(modules, weights, strict=True))
    summed = dense(weighted_sum(modules, weights))
    assert torch.allclose(summed, expected, atol=1e-12)
    assert torch.allclose(dense(weighted_sum(modules[::-1], weights[::-1])), summed, atol=1e-12)


def test_equally_strong_half_modules_are_kept_bit_for_bit():
    modules = [random_module(3, scale=0.3, seed=seed, dtype=torch.bfloat16) for seed in (0, 1)]
    summed = weighted_sum(modules, [0.7, -0.7])
    assert summed.scale == pytest.approx(0.21) and summed.A_RI.dtype == torch.bfloat16
    assert torch.equal(summed.B_OR, torch.cat([modules[0].B_OR, -modules[1].B_OR], dim=1))
    alone = weighted_sum(modules, [-0.5, 0.0])
    assert alone.scale == -0.15 and torch.equal(alone.B_OR, modules[0].B_OR) and alone.rank == 3


def test_widest_type_holds_all_values():
    half, brain, single = (random_module(1, dtype=dtype) for dtype in (torch.float16, torch.bfloat16, torch.float32))
    assert widest([half, half]) == torch.float16 and widest([half, brain]) == torch.float32
    assert widest([brain, single]) == torch.float32


def test_inner_product_and_energy_are_those_of_the_built_changes():
    first, second = random_module(3, 5000, 24, 0.5, seed=1), random_module(5, 5000, 24, -2.0, seed=2)
    assert inner(first, second) == pytest.approx(float((dense(first) * dense(second)).sum()), rel=1e-9)
    assert energy(second) == pytest.approx(float(dense(second).square().sum()), rel=1e-9)


def test_energy_of_what_is_no_number_is_an_error_and_not_nothing():
    module = random_module(3)
    assert energy(module, torch.float32) == pytest.approx(energy(module), rel=1e-5)
    for value in (float("nan"), float("inf")):
        broken = module.B_OR.clone()
        broken[0, 0] = value
        for dtype in (torch.float32, torch.float64):
            with pytest.raises(UserError, match="NaN, infinite or too large"):
                energy(module._replace(B_OR=broken), dtype)
    huge = module._replace(B_OR=module.B_OR * 1e30)
    assert energy(huge, torch.float32) == pytest.approx(1e60 * energy(module), rel=1e-4)
