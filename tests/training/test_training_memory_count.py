"""The count of a step's memory: on the small model it equals sums by hand, and orders ways as they must be."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from likeness.klein.family import layout_of
from likeness.training import bench
from likeness.training.adapter import add_adapter
from likeness.training.bench import MODELS, Case

PROGRAM = Path(__file__).resolve().parents[2] / "benchmarks" / "count_memory.py"


@pytest.fixture(scope="module")
def count_memory() -> ModuleType:
    spec = importlib.util.spec_from_file_location("count_memory", PROGRAM)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_storage_counts_from_its_first_tensor_to_its_last(count_memory) -> None:
    live = count_memory.LiveStorages()
    with live:
        one = torch.empty(256, device="meta")
        view = one.view(16, 16)
        assert (live.now, live.peak) == (1024, 1024)
        two = one + 1
        del one
        assert live.now == 2048, "a view keeps it"
        del view
        assert live.now == 1024
        del two
    assert (live.now, live.peak) == (0, 2048)


def test_what_stays_is_base_adapter_and_moments(count_memory) -> None:
    case = Case("miniature", 16, rank=2)
    cpu = torch.device("cpu")
    transformer = bench.random_transformer(MODELS["miniature"], cpu, cpu)
    own = sum(weight.nbytes for weight in transformer.parameters())
    weights = add_adapter(transformer, case.settings, layout_of(MODELS["miniature"].config))
    expected = own + 3 * sum(weight.nbytes for weight in weights.values())
    assert count_memory.count(case)["stays_gib"] * 2**30 == expected


def test_ways_that_save_memory_are_counted_to_save_it(count_memory) -> None:
    found = {
        (precision, recomputed): count_memory.count(
            Case("miniature", 64, rank=2, precision=precision, recomputed=recomputed)
        )
        for precision in ("bf16", "int8", "fp8")
        for recomputed in (False, True)
    }
    for precision in ("bf16", "int8", "fp8"):
        kept, recomputed = found[precision, False], found[precision, True]
        assert kept["stays_gib"] == recomputed["stays_gib"] < recomputed["peak_gib"] < kept["peak_gib"]
    assert found["int8", True]["stays_gib"] == found["fp8", True]["stays_gib"] < found["bf16", True]["stays_gib"]
