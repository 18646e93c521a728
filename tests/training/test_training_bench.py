"""The benchmark takes its whole way on the small model; figures of GPUs come from GPUs."""

from __future__ import annotations

import dataclasses
import gc
import json
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch

from likeness.errors import UserError
from likeness.klein.family import KLEIN_4B, KLEIN_9B, layout_of
from likeness.training import bench, frozen
from likeness.training.bench import (
    MODELS,
    Case,
    Peaks,
    as_row,
    cases_of,
    device_for,
    measure,
    measure_case,
    measure_peaks,
)
from likeness.training.frozen import block_linears, linear_at

PROGRAM = Path(__file__).resolve().parents[2] / "scripts" / "bench_training.py"
PEAKS = Peaks(1e12, 2e12, "none")
CPU = torch.device("cpu")


def run_program(*flags: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(PROGRAM), *map(str, flags)], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_program_measures_the_whole_table_of_the_small_model(tmp_path):
    flags = ("--model", "miniature", "--resolution", 16, "--steps", 2, "--no-compiled")
    done = run_program(*flags, "--json", tmp_path / "figures.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "figures.json").read_text())
    assert found["peaks"]["bf16"] > 1e8 and found["peaks"]["versions"]["torch"] == torch.__version__.partition("+")[0]
    cases = [case for case in cases_of("miniature", 16, None, None) if not case.compiled]
    assert len(found["rows"]) == len(cases) == len(done.stdout.splitlines()) - 2
    for row in found["rows"]:
        assert row["seconds"] > 0 and row["note"] == "", row
        assert row["fraction_of_floor"] == pytest.approx(row["floor_s"] / row["seconds"])
        assert row["tokens_a_second"] == pytest.approx((64 * (1 + row["case"]["references"]) + 32) / row["seconds"])


def test_figures_are_kept_as_they_come(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(PROGRAM.parent))
    import bench_training

    def interrupted(cases, peaks, steps):
        yield bench.Result(cases[0], 0.5)
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "measure", interrupted)
    monkeypatch.setattr(bench, "measure_peaks", lambda device: PEAKS)
    flags = ["--model", "miniature", "--resolution", "16", "--json", str(tmp_path / "figures.json")]
    monkeypatch.setattr(sys, "argv", ["bench_training.py", *flags])
    with pytest.raises(KeyboardInterrupt):
        bench_training.main()
    (row,) = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert row["seconds"] == 0.5


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_full_models_are_refused_with_the_way_out():
    done = run_program("--model", "9b", "--resolution", 1024)
    assert done.returncode == 2 and "needs a CUDA GPU, and torch finds none here" in done.stderr
    assert "--model miniature" in done.stderr and "Traceback" not in done.stderr
    with pytest.raises(UserError, match="needs a CUDA GPU"):
        device_for("4b")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"references": 2, "reference_px": 8},
        {"step": "example", "references": 1, "reference_px": 8},
        {"precision": "fp8"},
        {"precision": "int8", "recomputed": True},
        {"identity": True},
        {"targets": "single_in"},
        pytest.param({"compiled": True}, marks=pytest.mark.slow),
    ],
)
def test_every_kind_of_row_takes_real_steps(changes):
    case = dataclasses.replace(Case("miniature", 16, rank=2), **changes)
    result = measure_case(case, PEAKS, 2, CPU)
    assert result.seconds and result.floor_s and result.note == ""
    floor_s = case.flops.floor_s(1e12, 2e12 if case.precision == "fp8" else None)
    assert result.floor_s == pytest.approx(floor_s) and result.peak_gib is None
    assert len(as_row(result)) == len(bench.HEADER) and as_row(result)[8] == "", "memory was not measured here"


def test_steps_of_both_kinds_move_the_adapter():
    for step in ("likeness", "example"):
        training = bench.build_training(Case("miniature", 16, rank=2, step=step), CPU)
        before = {name: weight.detach().clone() for name, weight in training.weights.items()}
        run = bench.example_steps(training) if step == "example" else bench.trainer_steps(training)
        run(2)
        assert all(not torch.equal(weight, before[name]) for name, weight in training.weights.items()), step


def test_the_full_models_are_the_published_ones():
    assert layout_of(MODELS["4b"].config) == KLEIN_4B and layout_of(MODELS["9b"].config) == KLEIN_9B
    assert Case("9b", 1024).image_tokens == 4096 and Case("9b", 1024, 2, 512).image_tokens == 4096 + 2 * 1024
    assert Case("9b", 1024).flops.total / 1e12 == pytest.approx(169.1, rel=0.005)


def test_the_table_covers_sizes_references_targets_precisions_and_the_example():
    cases = cases_of("9b", None, None, None)
    assert len(set(cases)) == len(cases)
    assert {case.resolution_px for case in cases} == {512, 768, 1024}
    assert {(case.references, case.reference_px) for case in cases if case.references} == {
        (count, side_px) for count in (1, 2, 3, 4) for side_px in (512, 1024)
    }
    assert {case.precision for case in cases} == {"bf16", "int8", "fp8"}
    assert {case.step for case in cases} == {"likeness", "example"} and any(case.identity for case in cases)
    assert {"double_attn", "single_all", "attention", "image_stream"} < {case.targets for case in cases}
    small = [case for case in cases_of("miniature", 16, None, None) if case.references]
    assert {case.reference_px for case in small} == {16} and len(small) == 4, "no reference is larger than the target"
    for case in cases_of("4b", 768, 1, "fp8"):
        assert (case.model, case.resolution_px, case.references) == ("4b", 768, 1)
        assert case.precision == ("bf16" if case.step == "example" else "fp8"), (
            "its base is not quantised by our layers"
        )
    for precision in ("bf16", "int8", "fp8"):
        assert {(case.compiled, case.recomputed) for case in cases if case.precision == precision} == {
            (False, False),
            (True, False),
            (False, True),
        }


def test_a_case_that_does_not_fit_is_a_row_of_its_own(monkeypatch):
    def build(case, device):
        if case.rank == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(case, device)

    real = bench.build_training
    monkeypatch.setattr(bench, "build_training", build)
    cases = [Case("miniature", 16, rank=1), Case("miniature", 16, rank=2)]
    lost, found = measure(cases, PEAKS, 1)
    assert lost.note == "out of memory" and lost.seconds is None and as_row(lost)[6:11] == ("",) * 5
    assert found.seconds is not None


def test_a_case_that_fails_is_a_row_that_says_why(monkeypatch, caplog):
    def build(case, device):
        if case.compiled:
            raise RuntimeError("no compiler\nmore of it")
        return real(case, device)

    real = bench.build_training
    monkeypatch.setattr(bench, "build_training", build)
    lost, found = measure([Case("miniature", 16, rank=2, compiled=True), Case("miniature", 16, rank=2)], PEAKS, 1)
    assert (lost.note, lost.seconds) == ("RuntimeError: no compiler", None) and "Traceback" in caplog.text
    assert found.seconds is not None


def test_a_quantised_base_is_never_whole_on_the_device(monkeypatch, capsys):
    held = []

    def hold(transformer, device, pinned):
        held.append((pinned, {parameter.device.type for parameter in transformer.parameters()}))
        real(transformer, device, pinned)

    real = bench.hold_in_main_memory
    monkeypatch.setattr(bench, "hold_in_main_memory", hold)
    bench.build_training(Case("miniature", 16, rank=2), CPU)
    assert held == []
    bench.build_training(Case("miniature", 16, rank=2, precision="int8"), CPU)
    assert held == [(False, {"cpu"})]
    said = capsys.readouterr()
    assert "gradients agree" in said.err and said.out == "", "the table alone is on standard output"


def test_a_compiled_model_is_gone_before_the_next_case_is_measured(monkeypatch):
    built = []

    def build(case, device):
        assert all(one() is None for one in built), "the models before this one still lie in memory"
        training = real(case, device)
        # What torch keeps of a compiled block does not depend on what it is compiled to.
        training.transformer.compile_repeated_blocks(backend="eager")
        built.append(weakref.ref(linear_at(training.transformer, block_linears(training.transformer)[0]).weight))
        return training

    real = bench.build_training
    monkeypatch.setattr(bench, "build_training", build)
    gc.disable()
    try:
        found = list(measure([Case("miniature", 16), Case("miniature", 16)], PEAKS, 1))
    finally:
        gc.enable()
    assert len(built) == 2 and all(one.seconds is not None for one in found)


def test_the_peak_in_float8_times_nothing_but_the_product(monkeypatch):
    calls = {"stored_values": 0, "multiply": 0}

    def counted(name):
        def count(*args):
            calls[name] += 1
            return real[name](*args)

        return count

    real = {name: getattr(bench, name) for name in calls}
    for module, name in ((bench, "multiply"), (bench, "stored_values"), (frozen, "stored_values")):
        monkeypatch.setattr(module, name, counted(name))
    assert measure_peaks(CPU, side=64, rounds=3).fp8 is not None
    assert calls == {"stored_values": 2, "multiply": 5}, "each matrix once, whatever is timed"


def test_peaks_are_those_of_real_products():
    peaks = measure_peaks(CPU, side=256, rounds=2)
    assert 1e7 < peaks.bf16 < 1e15 and peaks.fp8 is not None and peaks.device == "cpu"
