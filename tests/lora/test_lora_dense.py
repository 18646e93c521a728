"""Trimming, dropping and electing signs against PEFT, mergekit's published rule in loops, and closed forms."""

from __future__ import annotations

import peft.utils.merge_utils as theirs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.lora.conftest import dense, difference, random_module

from likeness.lora.dense import drop_at_random, generator_for, keep_largest, low_rank, merge_by_signs


def changes(count, seed=0, shape=(7, 5)):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def mergekit_ties(deltas, weights, density):
    """Oracle: mergekit's ties (generalized_task_arithmetic.py, normalize on), element by element in plain Python."""
    count = max(1, int(density * deltas[0].numel()))
    trimmed = []
    for delta in deltas:
        values = delta.reshape(-1).tolist()
        kept = sorted(range(len(values)), key=lambda i, values=values: -abs(values[i]))[:count]
        trimmed.append([value if i in kept else 0.0 for i, value in enumerate(values)])
    merged = []
    for column in zip(*trimmed, strict=True):
        weighted = [weight * value for weight, value in zip(weights, column, strict=True)]
        sign = 1 if sum(weighted) >= 0 else -1
        agreeing = [i for i, value in enumerate(weighted) if value * sign > 0]
        divisor = sum(weights[i] for i in agreeing)
        merged.append(sum(weighted[i] for i in agreeing) / (divisor if abs(divisor) >= 1e-8 else 1))
    return torch.tensor(merged).reshape(deltas[0].shape)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1.5, 1.5), min_size=1, max_size=4), st.floats(0.05, 0.99), st.integers(0, 999))
def test_ties_in_both_conventions(weights, density, seed):
    """Oracles: peft.utils.merge_utils.ties, and mergekit's rule in loops."""
    deltas = changes(len(weights), seed)
    weight_N = torch.tensor(weights)
    if int(density * deltas[0].numel()):
        expected = theirs.ties(list(deltas), weight_N, density)
        assert torch.allclose(merge_by_signs(deltas, weight_N, density, "peft"), expected, atol=1e-6)
    ours = merge_by_signs(deltas, weight_N, density, "mergekit")
    assert torch.allclose(ours, mergekit_ties(deltas, weights, density), atol=1e-5)


def test_example_of_the_ties_paper_by_hand():
    """Two agree on plus, one is outvoted: the mean of the two; and a tie of signs is plus."""
    deltas = torch.tensor([[[3.0, 1.0]], [[1.0, -1.0]], [[-2.0, 0.0]]])
    for convention in ("peft", "mergekit"):
        merged = merge_by_signs(deltas, torch.ones(3), 1.0, convention)
        assert merged.tolist() == [[2.0, 1.0]]


def test_conventions_differ_by_the_weight_and_meet_in_weights_of_one():
    deltas, ones = changes(3), torch.ones(3)
    peft, mergekit = (merge_by_signs(deltas, ones, 0.5, convention) for convention in ("peft", "mergekit"))
    assert torch.allclose(peft, mergekit, atol=1e-6)
    halves = merge_by_signs(deltas, ones / 2, 0.5, "peft")
    assert torch.allclose(halves, merge_by_signs(deltas, ones / 2, 0.5, "mergekit") / 2, atol=1e-6)
    uneven = torch.tensor([0.5, 0.3, 0.2])
    peft, mergekit = (merge_by_signs(deltas, uneven, 0.5, convention) for convention in ("peft", "mergekit"))
    assert bool((peft.sign() != mergekit.sign()).any())


@pytest.mark.parametrize("convention", ["peft", "mergekit"])
def test_ties_of_one_change_with_itself_is_the_trimmed_change_in_any_order(convention):
    delta = changes(1)[0]
    assert torch.allclose(
        merge_by_signs(torch.stack([delta] * 3), torch.ones(3), 0.4, convention), keep_largest(delta, 0.4)
    )
    several, weights = changes(3), torch.tensor([0.2, 1.0, -0.4])
    assert torch.allclose(
        merge_by_signs(several, weights, 0.4, convention),
        merge_by_signs(several.flip(0), weights.flip(0), 0.4, convention),
    )


@pytest.mark.parametrize("density", [0.1, 0.5, 0.77])
def test_largest_elements_are_kept(density):
    """Oracle: peft.utils.merge_utils.prune."""
    delta = changes(1, shape=(11, 13))[0]
    assert torch.equal(keep_largest(delta, density), theirs.prune(delta, density, "magnitude"))


def test_trimming_at_its_ends_and_in_tiny_changes():
    delta = changes(1)[0]
    assert keep_largest(delta, 1.0) is delta and not keep_largest(delta, 0.0).any()
    assert int((keep_largest(delta, 0.001) != 0).sum()) == 1


@pytest.mark.parametrize("density", [0.1, 0.4, 0.9])
def test_dropping_has_the_mean_and_variance_of_its_closed_form(density):
    """Closed forms: mean W, variance W² (1 − density) / density; every kept value is exactly W / density."""
    delta = changes(1, shape=(4, 6))[0]
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([drop_at_random(delta, density, generator) for _ in range(4000)])
    kept = draws[draws != 0]
    assert torch.equal(kept, (delta / density).expand_as(draws)[draws != 0])
    spread = delta.abs() * ((1 - density) / density) ** 0.5
    assert ((draws.mean(0) - delta).abs() < 5 * spread / 4000**0.5).all()
    assert torch.allclose(draws.var(0), spread**2, rtol=0.25)
    assert drop_at_random(delta, 1.0, generator) is delta


def test_randomness_is_addressed_by_seed_name_and_content():
    module, other = random_module(3), random_module(3, seed=1)

    def draw(*address):
        return torch.rand(4, generator=generator_for(*address)).tolist()

    assert draw(0, "a", module) == draw(0, "a", module._replace(A_RI=module.A_RI.clone()))
    different = [draw(0, "a", module), draw(1, "a", module), draw(0, "b", module), draw(0, "a", other)]
    different.append(draw(0, "a", module._replace(scale=2.0)))
    assert len({tuple(numbers) for numbers in different}) == 5


@pytest.mark.parametrize("shape", [(40, 24), (600, 530)])
def test_low_rank_of_a_change_of_that_rank_is_the_change(shape):
    built = dense(random_module(4, *shape, decay=0.7)).float()
    low, kept = low_rank(built, 4, torch.Generator().manual_seed(0))
    assert low.rank == 4 and kept == pytest.approx(1.0, abs=1e-6) and difference(built, dense(low)) < 1e-5


@pytest.mark.parametrize(("shape", "slack"), [((40, 24), 1e-6), ((600, 530), 6e-2)])
def test_low_rank_of_noise_is_nearly_the_best_and_says_what_it_keeps(shape, slack):
    """Oracle: Eckart–Young. Noise has the flattest spectrum, where random projection does worst."""
    noise = torch.randn(*shape, generator=torch.Generator().manual_seed(3))
    low, kept = low_rank(noise, 8, torch.Generator().manual_seed(0))
    best = float(torch.linalg.svdvals(noise.double())[:8].square().sum() / noise.double().square().sum())
    assert kept == pytest.approx(1 - difference(noise, dense(low)) ** 2, abs=1e-5)
    assert best * (1 - slack) <= kept <= best + 1e-6
    assert low_rank(torch.zeros(shape), 2, torch.Generator())[1] == 1.0
