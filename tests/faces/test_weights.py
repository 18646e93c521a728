"""Where weights are looked for and how their bytes are named; sha256 against hashlib."""

from __future__ import annotations

import hashlib
import os

import pytest

from likeness.config.base import ModelSource
from likeness.errors import UserError
from likeness.faces.weights import files_fingerprint, hub_folder, model_fingerprint, weight_file


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
