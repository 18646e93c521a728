"""The six programs: what they write is what the library makes, loads in diffusers, and is told as text and as JSON."""

from __future__ import annotations

import importlib
import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.lora.conftest import dense, difference
from tests.lora.test_lora_inspect import lora_for
from tests.tiny import save_tiny

from likeness.errors import UserError
from likeness.klein.family import KLEIN_4B
from likeness.lora.adapter import Lora, relative_difference
from likeness.lora.files import read_lora, save_lora, sha256_of

CHOSEN = [r"^transformer_blocks\.0\.attn\.to_[qkv]$", r"^single_transformer_blocks\.19\.attn\.to_out$"]


@pytest.fixture(scope="module")
def drawer(tmp_path_factory):
    """Two LoRAs of klein 4B of ranks 4 and 5."""
    folder = tmp_path_factory.mktemp("drawer")
    for name, rank, scale in (("a", 4, 0.5), ("b", 5, 1.5)):
        save_lora(folder / f"{name}.safetensors", lora_for(KLEIN_4B, CHOSEN, rank, scale), {})
    return folder


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a program in this process; returns its exit code, and its JSON or its text and error text."""

    def run(program, *arguments):
        monkeypatch.setattr(sys, "argv", [program, *map(str, arguments)])
        code = 0
        try:
            runner(importlib.import_module(program).main)
        except SystemExit as stop:
            code = stop.code
        out, error = capsys.readouterr()
        return code, json.loads(out) if "--json" in arguments and not code else out, error

    from likeness.program import run as runner

    return run


def test_inspect(call, drawer):
    code, found, _ = call("inspect_lora", drawer / "a.safetensors", "--json")
    assert code == 0 and found["family"] == "klein-4b" and found["ranks"] == {"4": found["modules"]}
    code, text, error = call("inspect_lora", drawer / "a.safetensors")
    assert "klein-4b" in text and "energy share" in text and "warning: " in error and code == 0


def test_resize(call, drawer, tmp_path):
    out = tmp_path / "small.safetensors"
    code, found, _ = call("resize_lora", drawer / "a.safetensors", out, "--rank", 4, "--frobenius", 0.8, "--json")
    assert code == 0 and found["sha256"] == sha256_of(out) and found["verified_modules"] == len(found["modules"])
    assert json.loads(found.get("parents", read_lora(out).metadata["parents"])) == [sha256_of(drawer / "a.safetensors")]
    assert all(row["retained_energy"] >= 0.64 for row in found["modules"])
    assert any("have a rank below 4" in warning for warning in found["warnings"])
    code, text, error = call("resize_lora", drawer / "a.safetensors", out, "--rank", 2)
    assert (
        "retained energy" in text
        and "below 4" in error
        and read_lora(out).modules["transformer_blocks.0.attn.to_q"].rank == 2
    )


def test_merge_and_its_methods(call, drawer, tmp_path):
    out, inputs = tmp_path / "m.safetensors", [f"{drawer}/a.safetensors:0.7", f"{drawer}/b.safetensors:-0.3"]
    code, found, _ = call("merge_loras", out, *inputs, "--json")
    assert code == 0 and found["weights"] == "0.7,-0.3" and found["method"] == "sum"
    own = [read_lora(drawer / f"{name}.safetensors").modules for name in "ab"]
    name = "transformer_blocks.0.attn.to_q"
    merged = dense(read_lora(out).modules[name])
    assert difference(0.7 * dense(own[0][name]) - 0.3 * dense(own[1][name]), merged) < 1e-6


def test_merge_by_signs(call, tmp_path):
    lora, out = lora_for(KLEIN_4B, [r"^transformer_blocks\.0\.attn\.to_q$"]), tmp_path / "m.safetensors"
    save_lora(tmp_path / "q.safetensors", lora, {})
    method = ("--method", "ties", "--density", 0.5, "--convention", "mergekit", "--rank", 3)
    code, found, _ = call("merge_loras", out, f"{tmp_path}/q.safetensors:0.7", *method, "--json")
    assert code == 0 and found["convention"] == "mergekit" and found["density"] == "0.5"
    (row,) = found["modules"]
    assert row["rank_after"] == 3 and 0.5 < row["retained_energy"] < 1


def test_subtract_and_project(call, drawer, tmp_path):
    out, full, background = (tmp_path / "s.safetensors", *(drawer / f"{name}.safetensors" for name in "ab"))
    code, found, _ = call("subtract_lora", full, background, out, "--alpha", 0.5, "--json")
    assert code == 0 and {row["rank_after"] for row in found["modules"]} == {9}
    code, found, _ = call("subtract_lora", full, background, out, "--project", 2, "--json")
    assert code == 0 and {row["rank_after"] for row in found["modules"]} == {4}
    assert all(row["norm_after"] < row["norm_before"] for row in found["modules"])


def test_average(call, drawer, tmp_path):
    out, files = tmp_path / "avg.safetensors", [drawer / "a.safetensors", drawer / "b.safetensors"]
    code, found, _ = call("average_loras", out, *files, "--ema", 0.25, "--rank", 6, "--type", "bfloat16", "--json")
    assert code == 0 and found["operation"] == "average" and found["weights"] == "0.25,0.75"
    assert {module.A_RI.dtype for module in read_lora(out).modules.values()} == {torch.bfloat16}


def test_convert_to_comfyui_and_back_is_exact(call, drawer, tmp_path):
    there, back = tmp_path / "x.comfyui.safetensors", tmp_path / "back.safetensors"
    code, found, _ = call("convert_lora", drawer / "a.safetensors", there, "--format", "comfyui", "--json")
    assert code == 0 and found["verified_modules"] == len(found["modules"])
    assert "diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight" in load_file(there)
    assert call("convert_lora", there, back, "--format", "diffusers")[0] == 0
    own = read_lora(drawer / "a.safetensors").modules
    for name, module in read_lora(back).modules.items():
        assert relative_difference(own[name], module) < 1e-7 and module.rank == own[name].rank


def test_a_base_of_ones_own_is_named(call, state_dict, tmp_path):
    from likeness.lora.adapter import lora_of

    save_tiny(tmp_path / "base")
    save_lora(tmp_path / "x.safetensors", lora_of(state_dict, 1.0), {})
    arguments = ("convert_lora", tmp_path / "x.safetensors", tmp_path / "y.safetensors", "--format")
    code, text, _ = call(*arguments, "diffusers")
    assert code == 0 and "not checked: the base model is not known" in text
    code, _, error = call(*arguments, "comfyui")
    assert code == 2 and "name its base model with --base" in error
    code, found, _ = call(*arguments, "comfyui", "--base", tmp_path / "base", "--json")
    assert code == 0 and found["verified_modules"] == 30


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        ("resize_lora", ["{a}", "{out}", "--rank", 8, "--ratio", 0.8], "makes every module rank 2"),
        ("resize_lora", ["{a}", "{out}", "--rank", 8, "--rule", "kohya"], "give one of them"),
        ("resize_lora", ["absent.safetensors", "{out}", "--rank", 8], "does not exist"),
        ("merge_loras", ["{out}", "{a}:x"], "'x' is no weight"),
        ("merge_loras", ["{out}", "{a}:nan"], "'nan' is no weight"),
        ("merge_loras", ["{out}", "{a}", "--method", "ties", "--density", 0.2], "needs a convention"),
        ("average_loras", ["{out}", "{a}", "--ema", 1], "ema: 1 is not allowed"),
        ("subtract_lora", ["{a}", "{a}", "{out}", "--project", 0], "project: 0 is not allowed"),
        ("inspect_lora", ["absent.safetensors"], "does not exist"),
        ("inspect_lora", [""], "give FILE=…"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_file(program, arguments, message, call, drawer, tmp_path):
    names = {"a": drawer / "a.safetensors", "out": tmp_path / "out.safetensors"}
    code, _, error = call(program, *[str(argument).format(**names) for argument in arguments])
    assert code == 2 and error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def bad_files(folder, drawer):
    """One file of every kind that cannot be read, with what has to be said of it."""
    good = load_file(drawer / "a.safetensors")
    whole = (drawer / "a.safetensors").read_bytes()
    first = next(iter(good))
    flux1 = {f"transformer.single_transformer_blocks.0.proj_mlp.lora_{side}.weight": torch.ones(2, 2) for side in "AB"}
    other = {f"diffusion_model.img_in.lora_{side}.weight": torch.ones(2, 2) for side in "AB"}
    half = {key: tensor for key, tensor in good.items() if key != first}
    broken = good[first].clone()
    broken[0, 0] = float("nan")
    saved = {
        "nan": (good | {first: broken}, "holds NaN or infinite values"),
        "two formats": (good | other, "mixes two formats"),
        "another family": (flux1, "FLUX.1"),
        "half a module": (half, "one factor of the LoRA is missing"),
        "dora": (good | {f"{first[:30]}.lora_magnitude_vector": torch.ones(2)}, "is a DoRA"),
        "no tensors": ({}, "holds no tensors"),
    }
    for name, (tensors, message) in saved.items():
        save_file(tensors, folder / f"{name}.safetensors")
        yield name, message
    raw = {
        "torn": (whole[: len(whole) // 2], "It may be torn"),
        "pickle": (b"\x80\x02}q\x00.", "a pickle"),
        "zipped pickle": (b"PK\x03\x04" + whole[:100], "a pickle"),
        "empty": (b"", "it is empty"),
    }
    for name, (content, message) in raw.items():
        (folder / f"{name}.safetensors").write_bytes(content)
        yield name, message


CALLS = {
    "inspect_lora": ["{bad}"],
    "convert_lora": ["{bad}", "{out}", "--format", "diffusers"],
    "resize_lora": ["{bad}", "{out}", "--rank", 2],
    "merge_loras": ["{out}", "{good}", "{bad}:0.5"],
    "subtract_lora": ["{good}", "{bad}", "{out}"],
    "average_loras": ["{out}", "{good}", "{bad}"],
}


@pytest.mark.parametrize("program", CALLS)
def test_bad_files_are_one_clear_line_in_every_program(program, call, drawer, tmp_path):
    (tmp_path / "bad").mkdir()
    for name, message in bad_files(tmp_path / "bad", drawer):
        names = {"bad": tmp_path / "bad" / f"{name}.safetensors", "good": drawer / "a.safetensors"}
        names["out"] = tmp_path / "out.safetensors"
        code, text, error = call(program, *[str(one).format(**names) for one in CALLS[program]])
        if program == "inspect_lora" and name == "another family":
            assert code == 0 and "flux1" in text and "3072 against 4096" in text
            continue
        assert code == 2 and error.startswith("error: ") and error.count("\n") == 1, (name, error)
        assert message in error and f"{name}.safetensors" in error, (name, error)
        assert not names["out"].exists(), name


def test_what_is_only_odd_is_warned_of(call, drawer, tmp_path):
    """Missing blocks, mixed ranks and a coarse alpha are readable; each is said, and the last by every program."""
    lora = read_lora(drawer / "a.safetensors")
    tensors, ranks = {}, iter((4, 5, 6, 7))
    for name, module in lora.modules.items():
        rank = next(ranks)
        stem = "lora_unet_" + name.replace(".", "_")
        tensors[f"{stem}.lora_down.weight"] = torch.randn(rank, module.A_RI.shape[1])
        tensors[f"{stem}.lora_up.weight"] = torch.randn(module.B_OR.shape[0], rank)
        tensors[f"{stem}.alpha"] = torch.tensor(3.0, dtype=torch.bfloat16)
    odd, out = tmp_path / "odd.safetensors", tmp_path / "out.safetensors"
    save_file(tensors, odd)
    code, found, error = call("inspect_lora", odd, "--json")
    for text in ("alpha is stored as bfloat16", "96 modules of the blocks are not adapted", "ranks differ"):
        assert code == 0 and any(text in warning for warning in found["warnings"]) and text in error
    code, found, error = call("resize_lora", odd, out, "--rank", 4, "--json")
    assert code == 0 and "odd.safetensors: alpha is stored as bfloat16" in error and found["warnings"]
    assert {row["rank_before"] for row in found["modules"]} == {4, 5, 6, 7}
    back, name = read_lora(out).modules, "transformer_blocks.0.attn.to_q"
    rank = next(row["rank_before"] for row in found["modules"] if row["module"] == name)
    assert back[name].scale == pytest.approx(3 / rank)


def scaled_lora(path, *sizes):
    """A LoRA of klein 4B in float32 whose modules' B matrices have these sizes."""
    lora, modules = lora_for(KLEIN_4B, [r"^transformer_blocks\.0\.attn\.to_[qkv]$"]), {}
    for (name, module), size in zip(lora.modules.items(), sizes, strict=False):
        modules[name] = module._replace(B_OR=size * module.B_OR)
    save_lora(path, Lora(modules), {})
    return path, list(modules)


@pytest.mark.parametrize("format_name", ["diffusers", "comfyui"])
@pytest.mark.parametrize(("size", "message"), [(1e7, "float16 ends at 6.55e+04"), (1e-9, "too small for float16")])
def test_a_type_that_cannot_hold_the_result_is_named_and_the_old_file_stays(format_name, size, message, call, tmp_path):
    path, _ = scaled_lora(tmp_path / "in.safetensors", size)
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"what was there before")
    code, _, error = call("convert_lora", path, out, "--format", format_name, "--type", "float16")
    assert code == 2 and message in error and "another --type" in error and "diverged" not in error
    assert out.read_bytes() == b"what was there before" and {one.name for one in tmp_path.iterdir()} == {
        path.name,
        out.name,
    }
    assert call("convert_lora", path, out, "--format", format_name, "--type", "bfloat16")[0] == 0


@pytest.mark.parametrize("format_name", ["diffusers", "comfyui"])
def test_modules_that_become_zero_in_a_type_are_named(format_name, call, tmp_path):
    path, names = scaled_lora(tmp_path / "in.safetensors", 1e-9, 1.0, 1e-9)
    arguments = (path, tmp_path / "out.safetensors", "--format", format_name)
    code, found, _ = call("convert_lora", *arguments, "--type", "float16", "--json")
    (warning,) = found["warnings"]
    assert code == 0 and warning.startswith("2 modules are too small for float16 and became zero: ")
    assert names[0] in warning and names[2] in warning and names[1] not in warning
    assert call("convert_lora", *arguments, "--json")[1]["warnings"] == []


@pytest.mark.parametrize("format_name", ["diffusers", "comfyui"])
def test_what_diffusers_loads_wrongly_does_not_take_the_place_of_an_older_file(
    format_name, call, tmp_path, monkeypatch
):
    path, _ = scaled_lora(tmp_path / "in.safetensors", 1.0)
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"what was there before")
    refused = lambda file, layout: (_ for _ in ()).throw(UserError(f"LoRA file {file}: refused"))  # noqa: E731
    monkeypatch.setattr("likeness.lora.program.compare_loaded", refused)
    code, _, error = call("convert_lora", path, out, "--format", format_name)
    assert code == 2 and error == f"error: LoRA file {out}: refused\n"
    assert out.read_bytes() == b"what was there before" and len(list(tmp_path.iterdir())) == 2


def test_a_sum_that_a_type_cannot_hold_is_no_diverged_training(call, tmp_path):
    (large, _), (small, _) = (scaled_lora(tmp_path / f"{size}.safetensors", size) for size in (1e7, 1.0))
    code, _, error = call("merge_loras", tmp_path / "out.safetensors", large, small, "--type", "float16")
    assert code == 2 and "float16 ends at" in error and "--type" in error and "diverged" not in error
