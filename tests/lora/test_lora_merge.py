"""Merged LoRAs against PEFT's and the changes built in full; through files and the running pipeline."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.lora.conftest import dense, difference, random_module

from likeness.errors import UserError
from likeness.lora.adapter import Lora
from likeness.lora.merge import MergeRule, merge_loras


def test_sum_is_pefts_cat(two_adapters):
    """Oracle: PEFT's add_weighted_adapter with combination_type cat, for LoRAs of different ranks and modules."""
    merged = merge_loras([two_adapters.loras["a"], two_adapters.loras["b"]], [0.7, -0.3]).lora()
    theirs = two_adapters.merged([0.7, -0.3], "cat")
    assert merged.modules.keys() == theirs.keys() == two_adapters.loras["a"].modules.keys()
    for name, module in merged.modules.items():
        assert difference(theirs[name], dense(module)) < 1e-6, name
        assert module.rank == (10 if name in two_adapters.loras["b"].modules else 4)


def test_cut_sum_is_pefts_svd(two_adapters):
    """Oracle: PEFT's svd of the summed changes."""
    merge = merge_loras([two_adapters.loras["a"], two_adapters.loras["b"]], [0.7, 0.3], MergeRule(rank=5))
    theirs = two_adapters.merged([0.7, 0.3], "svd", svd_rank=5, svd_full_matrices=False)
    exact = merge_loras([two_adapters.loras["a"], two_adapters.loras["b"]], [0.7, 0.3]).lora()
    for row in merge.rows():
        module = merge.operate(row["module"]).module
        assert difference(theirs[row["module"]], dense(module)) < 1e-4, row
        lost = difference(dense(exact.modules[row["module"]]), dense(module)) ** 2
        assert row["retained_energy"] == pytest.approx(1 - lost, abs=1e-5)


def test_the_order_of_merging_does_not_matter(two_adapters):
    loras, weights = list(two_adapters.loras.values()), [0.4, 1.7]
    for rule in (MergeRule(), MergeRule(rank=3)):
        one, other = merge_loras(loras, weights, rule).lora(), merge_loras(loras[::-1], weights[::-1], rule).lora()
        for name, module in one.modules.items():
            assert difference(dense(module), dense(other.modules[name])) < 1e-6


@settings(max_examples=25, deadline=None)
@given(
    st.permutations(range(4)),
    st.lists(st.floats(-2, 2).filter(lambda weight: abs(weight) > 0.01), min_size=4, max_size=4),
    st.sampled_from(
        [
            MergeRule(),
            MergeRule(rank=3),
            MergeRule("ties", 24, 0.4, "peft"),
            MergeRule("ties", 24, 0.4, "mergekit"),
            MergeRule("dare", 24, 0.5),
            MergeRule("magnitude", 24, 0.5),
        ]
    ),
)
def test_no_order_of_any_number_of_loras_matters(order, weights, rule):
    """LoRAs of different ranks and scales, one of which adapts another module as well."""
    loras = [Lora({"a": random_module(1 + seed, seed=seed, scale=0.5 + seed)}) for seed in range(3)]
    loras.append(Lora({"a": random_module(4, seed=3), "b": random_module(2, seed=4)}))
    straight = merge_loras(loras, weights, rule).lora()
    turned = merge_loras([loras[place] for place in order], [weights[place] for place in order], rule).lora()
    assert straight.modules.keys() == turned.modules.keys() == {"a", "b"}
    for name, module in straight.modules.items():
        assert difference(dense(module), dense(turned.modules[name])) < 1e-4, name


def test_modules_of_one_lora_only_are_kept():
    first, second = (Lora({name: random_module(2, seed=seed)}) for seed, name in enumerate("ab"))
    merged = merge_loras([first, second], [0.5, 2.0]).lora()
    assert set(merged.modules) == {"a", "b"}
    assert torch.allclose(merged.modules["b"].delta(), 2 * second.modules["b"].delta())


def test_what_cannot_be_merged_is_named():
    small, large = Lora({"a": random_module(2)}), Lora({"a": random_module(2, inputs=30)})
    with pytest.raises(UserError, match="2 LoRAs and 1 weights"):
        merge_loras([small, small], [1.0])
    with pytest.raises(UserError, match="all weights are 0"):
        merge_loras([small, small], [0.0, 0.0])
    with pytest.raises(UserError, match=r"'a' is .* \(40, 24\) and \(40, 30\): these LoRAs were trained for different"):
        merge_loras([small, large], [1.0, 1.0]).lora()
    with pytest.raises(UserError, match="rank: 0 is not allowed"):
        MergeRule(rank=0)


@pytest.mark.parametrize(
    ("rule", "combination", "options"),
    [
        (MergeRule("ties", rank=64, density=0.3, convention="peft"), "ties_svd", {"density": 0.3}),
        (MergeRule("magnitude", rank=64, density=0.3), "magnitude_prune_svd", {"density": 0.3}),
        (MergeRule("ties", rank=6, density=0.5, convention="peft"), "ties_svd", {"density": 0.5}),
    ],
)
def test_dense_merges_are_pefts(rule, combination, options, two_adapters):
    """Oracle: PEFT's add_weighted_adapter with ties_svd and magnitude_prune_svd."""
    name = "single_transformer_blocks.1.attn.to_out"
    theirs = two_adapters.merged([0.7, 0.4], combination, svd_rank=rule.rank, svd_full_matrices=False, **options)
    merged, row = merge_loras(list(two_adapters.loras.values()), [0.7, 0.4], rule).operate(name)
    assert difference(theirs[name], dense(merged)) < 1e-4
    assert row["rank_before"] == 10 and row["rank_after"] == rule.rank
    whole = merge_loras(list(two_adapters.loras.values()), [0.7, 0.4], replace(rule, rank=64)).operate(name)
    lost = difference(dense(whole.module), dense(merged)) ** 2
    assert whole.row["retained_energy"] == pytest.approx(1.0, abs=1e-6)
    assert row["retained_energy"] == pytest.approx(1 - lost, abs=1e-5)


def test_dare_keeps_the_change_in_the_mean_and_does_not_depend_on_order(two_adapters):
    loras, weights, name = list(two_adapters.loras.values()), [0.7, 0.4], "single_transformer_blocks.1.attn.to_out"
    exact = dense(merge_loras(loras, weights).operate(name).module)
    draws = [
        dense(merge_loras(loras, weights, MergeRule("dare", 64, 0.5, seed=seed)).operate(name).module)
        for seed in range(60)
    ]
    assert difference(exact, sum(draws) / 60) < 3 / 60**0.5 and difference(exact, draws[0]) > 0.5
    other = merge_loras(loras[::-1], weights[::-1], MergeRule("dare", 64, 0.5, seed=0)).operate(name).module
    assert difference(draws[0], dense(other)) < 1e-6
    row = merge_loras(loras, weights, MergeRule("dare", 8, 0.1)).operate(name).row
    # E‖DARE(W)‖² = ‖W‖² / density, for each LoRA; a rank of 8 of 64 holds a part of that.
    parts = sum((w * dense(lora.modules[name])).square().sum() for lora, w in zip(loras, weights, strict=True))
    assert row["energy_ratio"] == pytest.approx(float(parts / 0.1 / exact.square().sum()), rel=0.1)
    assert 0.2 < row["retained_energy"] < 0.8


def test_one_lora_alone_is_pruned_too(two_adapters):
    """PEFT silently turns a merge of one adapter into a plain copy."""
    lora, name = two_adapters.loras["a"], "transformer_blocks.0.attn.to_q"
    exact = lora.modules[name].delta()
    for rule in (MergeRule("dare", 64, 0.3), MergeRule("magnitude", 64, 0.3), MergeRule("ties", 64, 0.3, "peft")):
        found = dense(merge_loras([lora], [1.0], rule).operate(name).module)
        assert 0.2 < float((found.abs() > 1e-6).float().mean()) < 0.4 and difference(exact, found) > 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "ties", "density": 0.2}, "method ties needs a convention, peft or mergekit"),
        ({"method": "dare", "density": 0.2, "convention": "peft"}, "method dare takes no convention"),
        ({"method": "dare"}, "method dare needs a density"),
        ({"density": 0.2}, "method sum takes no density"),
        ({"method": "magnitude", "density": 0.0}, "density: 0 is not allowed"),
        ({"method": "magnitude", "density": 20.0}, "density: 20 is not allowed"),
    ],
)
def test_rules_that_cannot_be_meant(arguments, message):
    with pytest.raises(UserError, match=message):
        MergeRule(**arguments)
