"""Where weights are looked for and how their bytes are named; sha256 against hashlib."""

from __future__ import annotations

import hashlib
import os

import pytest

from likeness.config.base import ModelSource
from likeness.errors import UserError
from likeness.faces.weights import check_sha256, files_fingerprint, hub_folder, model_fingerprint, weight_file


def test_file_fingerprint_is_its_sha256_and_is_remembered(tmp_path):
    file, store = tmp_path / "a.onnx", tmp_path / "store"
    file.write_bytes(b"weights")
    expected = hashlib.sha256(b"weights").hexdigest()
    assert files_fingerprint(file, store) == expected
    stamp = file.stat()
    file.write_bytes(b"WEIGHTS")
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert files_fingerprint(file, store) == expected  # same size and time: remembered, as documented
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    assert files_fingerprint(file, store) == hashlib.sha256(b"WEIGHTS").hexdigest()


def test_damaged_memory_costs_time_only(tmp_path):
    file, store = tmp_path / "a.onnx", tmp_path / "store"
    file.write_bytes(b"weights")
    store.mkdir()
    (store / "fingerprints.json").write_text("{torn")
    assert files_fingerprint(file, store) == hashlib.sha256(b"weights").hexdigest()


def test_configured_names_need_no_files(tmp_path):
    assert model_fingerprint(ModelSource(source="a/b", revision="r1"), None, tmp_path) == "a/b@r1"
    assert model_fingerprint(ModelSource(source="a/b", sha256="f" * 64), None, tmp_path) == "f" * 64


def test_absent_file_names_file_and_folder(tmp_path):
    with pytest.raises(UserError, match=r"masks\.model.*sam\.pt") as caught:
        weight_file("masks.model", ModelSource(source=str(tmp_path / "sam.pt")), "the checkpoint")
    assert str(tmp_path) in str(caught.value)


def test_offline_hub_id_asks_no_network(tmp_path, monkeypatch, no_network):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"model\.safetensors.*models--no--such-model"):
        hub_folder("masks.model", ModelSource(source="no/such-model"), ("model.safetensors",), offline=True)
    assert no_network == []


def test_local_folder_lists_what_it_lacks(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"lacks model\.safetensors"):
        hub_folder("masks.model", ModelSource(source=str(tmp_path)), ("config.json", "model.safetensors"), offline=True)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert hub_folder("k", ModelSource(source=str(tmp_path)), ("model.safetensors",), offline=True) == tmp_path


def test_a_folders_sha256_is_that_of_its_weight_file(tmp_path):
    folder, store = tmp_path / "model", tmp_path / "store"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    right = ModelSource(source=str(folder), sha256=hashlib.sha256(b"weights").hexdigest())
    check_sha256("masks.model", right, folder, store)
    (folder / "config.json").write_text('{"a": 1}')
    check_sha256("masks.model", right, folder, store)
    (folder / "model.safetensors").write_bytes(b"others!!")
    with pytest.raises(UserError, match=rf"model\.safetensors have sha256 {hashlib.sha256(b'others!!').hexdigest()}"):
        check_sha256("masks.model", right, folder, store)


def test_a_folder_without_one_weight_file_has_the_digest_that_the_error_tells(tmp_path):
    folder, store = tmp_path / "model", tmp_path / "store"
    folder.mkdir()
    for number in (1, 2):
        (folder / f"model-0000{number}-of-00002.safetensors").write_bytes(bytes([number]))
    with pytest.raises(UserError, match=r"have sha256 [0-9a-f]{64}") as caught:
        check_sha256("captions.model", ModelSource(source=str(folder), sha256="0" * 64), folder, store)
    told = str(caught.value).partition("have sha256 ")[2][:64]
    check_sha256("captions.model", ModelSource(source=str(folder), sha256=told), folder, store)
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"captions\.model"):
        check_sha256("captions.model", ModelSource(source=str(folder), sha256=told), folder, store)
