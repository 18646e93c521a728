"""Merged LoRAs against PEFT's and the changes built in full; through files and the running pipeline."""

from __future__ import annotations

import pytest
import torch
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
