"""Ranks by hand-made spectra and kohya's own choices; resized LoRAs against PEFT's and the properties they must have."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.lora.conftest import dense, difference, random_module

from likeness.errors import UserError
from likeness.lora.adapter import Lora, lora_of
from likeness.lora.files import read_lora
from likeness.lora.operation import write_operation
from likeness.lora.resize import RankRule, choose_rank, low_ranks, resize_lora, resize_module

SPECTRUM = torch.tensor([1.0, 0.51, 0.4, 0.27, 0.18, 0.12, 0.08, 0.02] + [0.001] * 8, dtype=torch.float64)


@pytest.mark.parametrize(
    ("criterion", "threshold", "kohya", "minimal"),
    [
        ("ratio", 1.0, 2, 1),
        ("ratio", 2.0, 3, 2),
        ("ratio", 10.0, 7, 6),
        ("ratio", 20.0, 8, 7),
        ("ratio", 2.5, 3, 3),
        ("frobenius", 0.8, 2, 1),
        ("frobenius", 0.9, 3, 2),
        ("cumulative", 0.8, 5, 4),
        ("cumulative", 0.9, 6, 5),
        ("cumulative", 1e-6, 2, 1),
        ("frobenius", 1.0, 16, 16),
    ],
)
def test_rank_of_a_known_spectrum(criterion, threshold, kohya, minimal):
    """Oracle: what kohya's resize_lora.py chose for such a spectrum, and counting by hand for the smallest rank."""
    assert choose_rank(SPECTRUM, RankRule(64, criterion, threshold, "kohya")) == kohya
    assert choose_rank(SPECTRUM, RankRule(64, criterion, threshold)) == minimal
    assert choose_rank(SPECTRUM, RankRule(3, criterion, threshold)) == min(3, minimal)
    assert choose_rank(100 * SPECTRUM, RankRule(64, criterion, threshold)) == minimal


def kohya_rank(singular_K, criterion, threshold, cap):
    """Oracle: kohya's published rule, by loops over plain numbers."""
    values = [float(value) for value in singular_K]
    if criterion == "ratio":
        index = sum(value > values[0] / threshold for value in values)
    else:
        powers = [value ** (2 if criterion == "frobenius" else 1) for value in values]
        part = threshold**2 if criterion == "frobenius" else threshold
        index = next((i for i in range(len(values)) if sum(powers[: i + 1]) / sum(powers) >= part), len(values)) + 1
    return min(max(1, min(index, len(values) - 1)) + 1, cap)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0.001, 100), min_size=2, max_size=20),
    st.sampled_from([("ratio", 1.0, 60.0), ("frobenius", 0.05, 0.999), ("cumulative", 0.05, 0.999)]),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_ranks_are_kohyas_minimal_and_monotone(values, criterion, low, high):
    singular_K = torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
    name, start, end = criterion
    strict, generous = (start + (end - start) * part for part in sorted((low, high)))
    rules = [RankRule(100, name, threshold) for threshold in (strict, generous)]
    ranks = [choose_rank(singular_K, rule) for rule in rules]
    assert 1 <= ranks[0] <= ranks[1] <= len(values)
    assert choose_rank(singular_K, RankRule(100, name, strict, "kohya")) == kohya_rank(singular_K, name, strict, 100)
    assert ranks[0] == smallest_rank(singular_K, name, strict)


def smallest_rank(singular_K, criterion, threshold):
    """Oracle: try every rank from 1 until the criterion holds."""
    for rank in range(1, len(singular_K) + 1):
        kept, rest = singular_K[:rank], singular_K[rank:]
        held = {
            "ratio": not len(rest) or bool(rest[0] < singular_K[0] / threshold),
            "frobenius": bool(kept.norm() >= threshold * singular_K.norm() * (1 - 1e-12)),
            "cumulative": bool(kept.sum() >= threshold * singular_K.sum() * (1 - 1e-12)),
        }[criterion]
        if held:
            return rank
    raise AssertionError("no rank fulfils the criterion")


def test_one_value_and_none():
    assert choose_rank(torch.tensor([2.0]), RankRule(8, "ratio", 10, "kohya")) == 1
    assert choose_rank(torch.zeros(5), RankRule(8, "frobenius", 0.9)) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((32, "ratio", 0.8), r"ratio: 0\.8 is not allowed.*makes every module rank 2.*80% of the norm use frobenius"),
        ((32, "ratio", float("nan")), "ratio: nan is not allowed"),
        ((32, "frobenius", 1.5), "frobenius: 1.5 is not allowed; it is a part"),
        ((32, "cumulative", 0.0), "cumulative: 0 is not allowed"),
        ((32, "cumulative", None), "cumulative needs a threshold"),
        ((0,), "rank: 0 is not allowed"),
        ((8, "fixed", 0.5), "a fixed rank takes no threshold"),
        ((8, "fixed", None, "kohya"), "a fixed rank takes no threshold"),
    ],
)
def test_rules_that_cannot_be_meant(arguments, message):
    with pytest.raises(UserError, match=message):
        RankRule(*arguments)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(0, 5), st.floats(0.2, 1.0), st.sampled_from([torch.float32, torch.bfloat16]))
def test_resize_to_its_own_rank_or_more_is_the_identity(rank, more, decay, dtype):
    lora = Lora({"a": random_module(rank, decay=decay, scale=0.3, dtype=dtype)})
    assert resize_lora(lora, RankRule(rank + more)).lora().modules["a"] is lora.modules["a"]


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([("ratio", 1.0, 60.0), ("frobenius", 0.05, 1.0), ("cumulative", 0.05, 1.0)]),
    st.lists(st.floats(0, 1), min_size=2, max_size=2).map(sorted),
    st.integers(0, 999),
)
def test_a_stricter_threshold_never_keeps_more(criterion, parts, seed):
    """Of real modules: rank and energy kept grow with the threshold, and the energy is what truly stays."""
    name, start, end = criterion
    module = random_module(7, decay=0.6, seed=seed)
    found = [resize_module(module, RankRule(7, name, start + (end - start) * part)) for part in parts]
    ranks, energies = zip(*((row["rank_after"], row["retained_energy"]) for _, row in found), strict=True)
    assert ranks[0] <= ranks[1] and energies[0] <= energies[1]
    lost = [difference(dense(module), dense(cut)) ** 2 for cut, _ in found]
    assert energies == pytest.approx([1 - part for part in lost], abs=1e-5)


def test_a_second_resize_changes_nothing():
    module = random_module(6, decay=0.7, scale=0.5)
    assert resize_module(module, RankRule(6)).module is module
    once = resize_module(module, RankRule(3)).module
    assert resize_module(once, RankRule(3)).module is once
    again = resize_module(resize_module(module, RankRule(5)).module, RankRule(3)).module
    assert difference(dense(once), dense(again)) < 1e-6


def test_row_says_what_was_kept():
    module = random_module(6, decay=0.5, scale=0.5)
    cut, row = resize_module(module, RankRule(6, "frobenius", 0.95))
    true = 1 - difference(dense(module), dense(cut)) ** 2
    assert row == {"rank_before": 6, "rank_after": cut.rank, "retained_energy": pytest.approx(true, abs=1e-6)}
    assert row["retained_energy"] >= 0.95**2


def test_low_ranks_warn_unless_they_were_low_before():
    rows = [{"module": "a", "rank_before": 8, "rank_after": 3}, {"module": "b", "rank_before": 2, "rank_after": 2}]
    (warning,) = low_ranks(rows)
    assert "1 modules have a rank below 4 (first 'a')" in warning
    assert low_ranks(rows[1:]) == []


def test_svd_of_peft_gives_the_same_changes(two_adapters):
    """Oracle: PEFT's add_weighted_adapter with combination_type svd, which builds every change in full."""
    theirs = two_adapters.merged([1.0, 0.0], "svd", svd_rank=2, svd_full_matrices=False)
    resized = resize_lora(two_adapters.loras["a"], RankRule(2)).lora()
    assert len(resized.modules) == 30
    for name, module in resized.modules.items():
        assert difference(theirs[name], dense(module)) < 1e-4, name  # PEFT works in float32


def test_file_to_file_and_back_through_diffusers(adapted, state_dict, tmp_path):
    from likeness.lora.files import verify_lora

    lora = lora_of(state_dict, 2.5)
    written = write_operation(
        tmp_path / "small.safetensors", resize_lora(lora, RankRule(4, "ratio", 1.3)), {"by": "test"}
    )
    assert verify_lora(tmp_path / "small.safetensors", adapted[0], 30).sha256 == written.sha256
    ranks = {row["module"]: row["rank_after"] for row in written.rows}
    back = read_lora(tmp_path / "small.safetensors")
    assert {name: module.rank for name, module in back.modules.items()} == ranks and len(set(ranks.values())) > 1
    assert {module.scale for module in back.modules.values()} == {2.5}
    assert back.metadata["operation"] == "resize" and back.metadata["by"] == "test"


def test_metadata_of_two_threads_and_of_one_are_the_same_bytes(state_dict, tmp_path):
    operation = resize_lora(Lora({**lora_of(state_dict, 1.0).modules}), RankRule(2))
    alone, together = (
        write_operation(tmp_path / f"{threads}.safetensors", operation, {}, threads=threads) for threads in (1, 2)
    )
    assert alone == together
