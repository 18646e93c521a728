"""Files written one tensor at a time, against the safetensors library; reading through the map."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.lora.conftest import random_module

from likeness.errors import UserError
from likeness.lora.adapter import Lora
from likeness.lora.files import open_lora, read_lora, save_lora, sha256_of
from likeness.lora.operation import Operated, Operation, in_order, write_operation
from likeness.lora.stream import MappedTensors, write_stream


def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "a": torch.randn(3, 5, generator=generator).bfloat16(),
        "b": torch.randn(4, generator=generator),
        "c": torch.zeros(0, 2),
        "d": torch.randn((), generator=generator, dtype=torch.float64),
        "e": torch.randn(7, 3, generator=generator).T.half(),
        "f": torch.arange(3),
    }


def test_the_library_reads_what_is_streamed_and_wide_types_come_first(tmp_path):
    sha256 = write_stream(tmp_path / "x", iter(tensors().items()), lambda: {"who": "me"})
    back = load_file(tmp_path / "x")
    assert back.keys() == tensors().keys() and all(torch.equal(back[key], value) for key, value in tensors().items())
    with safe_open(tmp_path / "x", "pt") as file:
        assert file.metadata() == {"format": "pt", "who": "me"}
    assert sha256 == sha256_of(tmp_path / "x") and [path.name for path in tmp_path.iterdir()] == ["x"]
    header_bytes = int.from_bytes((tmp_path / "x").read_bytes()[:8], "little")
    assert header_bytes % 8 == 0


def test_a_type_that_comes_first_is_read_first_and_must_leave_others_aligned(tmp_path):
    given = {"a": torch.ones(3, 2).bfloat16(), "b": torch.ones(5), "c": torch.full((2,), 2.0).bfloat16()}
    write_stream(tmp_path / "x", iter(given.items()), dict, first=torch.bfloat16)
    back = load_file(tmp_path / "x")
    assert list(back) == ["a", "c", "b"] and all(torch.equal(back[key], value) for key, value in given.items())
    with pytest.raises(ValueError, match="cannot lie before larger types"):
        write_stream(tmp_path / "y", iter({**given, "a": torch.ones(3).bfloat16()}.items()), dict, first=torch.bfloat16)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("dtypes", [(torch.float32,), (torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)])
@pytest.mark.parametrize("room", [0, 8, 64, 4096])
def test_room_for_the_header_changes_spaces_only(dtypes, room, tmp_path):
    """Too little room, or several types, is written in two passes: the same tensors, metadata and hash."""
    given = {f"{index}": torch.arange(5.0).to(dtypes[index % len(dtypes)]) + index for index in range(6)}
    sha256 = write_stream(tmp_path / "x", iter(given.items()), lambda: {"who": "me"}, room)
    assert sha256 == sha256_of(tmp_path / "x") and [path.name for path in tmp_path.iterdir()] == ["x"]
    with safe_open(tmp_path / "x", "pt") as file:
        assert file.metadata() == {"format": "pt", "who": "me"}
        assert all(torch.equal(file.get_tensor(key), value) for key, value in given.items())
    content = (tmp_path / "x").read_bytes()
    length = int.from_bytes(content[:8], "little") + 8
    assert length % 8 == 0 and length >= room
    write_stream(tmp_path / "plain", iter(given.items()), lambda: {"who": "me"})
    plain = (tmp_path / "plain").read_bytes()
    start = int.from_bytes(plain[:8], "little") + 8
    assert content[8:length].rstrip() == plain[8:start].rstrip() and content[length:] == plain[start:]


@pytest.mark.parametrize("count", [1, 3, 144])
def test_headers_of_operations_fit_into_the_room_that_is_kept(count, tmp_path, monkeypatch):
    """Modules of longest names, each with a rank and an alpha of its own, are still written in one pass."""
    from likeness.lora import stream

    monkeypatch.setattr(stream, "_joined", lambda *_: pytest.fail("two passes"))
    modules = {
        f"single_transformer_blocks.{index}.attn.to_qkv_mlp_proj": random_module(1 + index, scale=1 / (3 + index))
        for index in range(count)
    }
    operation = Operation(sorted(modules), lambda name: Operated(modules[name], {}), {"operation": "convert"})
    write_operation(tmp_path / "x.safetensors", operation, {"parents": '["' + "a" * 64 + '"]'})
    back = read_lora(tmp_path / "x.safetensors").modules
    assert {name: module.rank for name, module in back.items()} == {name: one.rank for name, one in modules.items()}


def test_the_body_is_the_librarys_own_bytes(tmp_path):
    one_type = {key: value.float() for key, value in tensors().items() if value.ndim}
    write_stream(tmp_path / "ours", iter(one_type.items()), dict)
    save_file({key: value.contiguous() for key, value in one_type.items()}, tmp_path / "theirs")
    ours, theirs = ((tmp_path / name).read_bytes() for name in ("ours", "theirs"))
    size = sum(value.nbytes for value in one_type.values())
    assert ours[-size:] == theirs[-size:]


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="'a' comes after 'b'"):
        write_stream(path, iter([("b", torch.ones(1)), ("a", torch.ones(1))]), dict)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_mapped_tensors_say_shape_and_type_without_values(tmp_path):
    save_file({"a": torch.ones(2, 3, dtype=torch.bfloat16)}, tmp_path / "x")
    found = MappedTensors(tmp_path / "x")
    assert found.shape("a") == (2, 3) and found.type_name("a") == "BF16" and list(found) == ["a"] and "b" not in found
    with pytest.raises(KeyError):
        found["b"]


def test_opened_lora_is_the_read_one_and_may_be_written_onto_itself(tmp_path, monkeypatch):
    monkeypatch.setattr("likeness.lora.stream._REMAP_BYTES", 100)
    path = tmp_path / "x.safetensors"
    lora = Lora({name: random_module(2, seed=seed) for seed, name in enumerate(("proj_out", "x_embedder"))})
    save_lora(path, lora, {})
    opened, read = open_lora(path), read_lora(path)
    assert opened.modules.keys() == read.modules.keys() and isinstance(read.modules, dict)
    operation = Operation(sorted(opened.modules), lambda name: Operated(opened.modules[name], {"rank": 2}), {})
    write_operation(path, operation, {})
    before = path.read_bytes()
    written = write_operation(path, operation, {})
    assert path.read_bytes() == before and written.sha256 == sha256_of(path)
    assert written.rows == [{"module": name, "rank": 2} for name in sorted(lora.modules)]
    assert open_lora(path).metadata == read.metadata
    for name, module in operation.lora().modules.items():
        assert torch.equal(module.A_RI, lora.modules[name].A_RI)
    with pytest.raises(UserError, match="would hold no module"):
        write_operation(path, Operation([], operation.operate, {}), {})


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_come_in_order_and_errors_arrive(threads):
    assert list(in_order(lambda name: name * 2, list("abcdefg"), threads)) == [name * 2 for name in "abcdefg"]

    def fail(name):
        raise UserError(name)

    with pytest.raises(UserError, match="a"):
        list(in_order(fail, ["a", "b"], threads))
