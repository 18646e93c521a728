"""What people are told of memory and time beforehand: the counts that are written down are those of the count itself."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from likeness.config.subject import Subject
from likeness.klein.family import KLEIN_9B
from likeness.training.bench import Case
from likeness.training.needs import COUNTED, H200_FLOPS, REACHED, memory_needed, memory_told, step_seconds, time_told

PROGRAM = Path(__file__).resolve().parents[2] / "benchmarks" / "count_memory.py"


def subject(base: str = "someone/FLUX.2-klein-base-9B", **more: Any) -> Subject:
    data: dict[str, Any] = {"photos": [{"path": "data"}]} if "pairs" not in more else {"recipe": "edit"}
    return Subject.model_validate({"trigger": "j4ne", "base_model": {"source": base}, **data, **more})


@pytest.mark.slow
@pytest.mark.parametrize("model", ["4b", "9b"])
def test_the_figures_are_those_of_the_count(model: str) -> None:
    spec = importlib.util.spec_from_file_location("count_memory", PROGRAM)
    assert spec is not None and spec.loader is not None
    count_memory = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(count_memory)
    peaks = [
        [
            count_memory.count(Case(model, 1024, number, precision="bf16", rank=32, recomputed=recomputed))["peak_gib"]
            for number in (0, 1)
        ]
        for recomputed in (False, True)
    ]
    (kept, kept_with_one), (recomputed, recomputed_with_one) = peaks
    found = (kept, recomputed, kept_with_one - kept, recomputed_with_one - recomputed)
    assert found == pytest.approx(COUNTED[f"klein-{model}"], abs=0.06)


def test_references_cost_memory_by_their_area() -> None:
    one: dict[str, Any] = {"pairs": [{"path": "data"}]}
    two: dict[str, Any] = {"pairs": [{"path": "data", "roles": {"source": "a", "reference": "b", "target": "c"}}]}
    small: dict[str, Any] = {"training": {"buckets": {"reference_resolution_px": 512}}}
    counted = COUNTED["klein-9b"]
    assert memory_needed(subject()) == (counted.recomputed, counted.kept)
    assert memory_needed(subject(**one)) == (20.8 + 2.5, 53.8 + 31.9)
    assert memory_needed(subject(**two, **small)) == pytest.approx((20.8 + 2 * 2.5 / 4, 53.8 + 2 * 31.9 / 4))


def test_time_is_that_of_the_operations_of_all_trainings() -> None:
    plain = subject(training={"rank": 32, "steps": 1000}).training
    recomputed = subject(training={"rank": 32, "gradient_checkpointing": True}).training
    assert step_seconds(plain, KLEIN_9B, 0) == pytest.approx(169.1e12 / (H200_FLOPS * REACHED), rel=1e-3)
    assert step_seconds(recomputed, KLEIN_9B, 0) == pytest.approx(245.1e12 / (H200_FLOPS * REACHED), rel=3e-3)
    batch = subject(training={"rank": 32, "batch_size": 2, "gradient_accumulation": 3}).training
    assert step_seconds(batch, KLEIN_9B, 0) == pytest.approx(6 * step_seconds(plain, KLEIN_9B, 0))
    assert step_seconds(plain, KLEIN_9B, 1) > 1.8 * step_seconds(plain, KLEIN_9B, 0)
    twice = subject(
        training={"rank": 32, "steps": 1000}, variants={"one": {}, "two": {}, "old": {"lora": "a.safetensors"}}
    )
    assert time_told(twice) == "2000 steps, about 14 minutes on an H200 or 72 minutes on an RTX 4090"


def test_nothing_is_told_of_a_base_model_that_nobody_counted() -> None:
    assert memory_needed(subject("miniature")) is None
    assert (memory_told(subject("miniature")), time_told(subject("weights/mine"))) == ("", "")
