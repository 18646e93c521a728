"""Loading: parts on demand, refusals before weights are read, fingerprints."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from likeness.errors import UserError
from likeness.klein import fingerprint
from likeness.klein.fingerprint import folder_fingerprint
from likeness.klein.load import BaseModel, check_trainable


@pytest.fixture
def copied(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder, tmp_path / "base")


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_parts_are_loaded_on_demand_frozen_and_released(tiny_folder):
    base = BaseModel(str(tiny_folder), dtype="bfloat16")
    assert base.layout.num_double == 2 and base.token_px == 4 and base.max_text_tokens == 64
    assert not {"transformer", "vae", "text_encoder"} & set(vars(base))
    transformer = base.transformer
    assert transformer.dtype == torch.bfloat16 and not transformer.training
    assert not any(parameter.requires_grad for parameter in transformer.parameters())
    assert base.transformer is transformer and "vae" not in vars(base)
    base.release("transformer")
    base.release("vae")
    assert "transformer" not in vars(base) and base.transformer is not transformer
    assert base.scheduler.config["use_dynamic_shifting"]


def test_4b_text_encoder_with_9b_transformer_is_refused(copied):
    change(copied / "transformer" / "config.json", joint_attention_dim=12288)
    base = BaseModel(str(copied))
    for part in ("transformer", "text_encoder"):
        with pytest.raises(UserError, match=r"hidden size 32.*reads 12288"):
            getattr(base, part)


def test_short_text_encoder_is_refused(copied):
    change(copied / "text_encoder" / "config.json", num_hidden_layers=27)
    with pytest.raises(UserError, match=r"has 27 layers.*at least 28"):
        assert BaseModel(str(copied)).text_encoder


def test_distilled_checkpoint_needs_permission(copied):
    check_trainable(BaseModel(str(copied)), allow_distilled=False)
    change(copied / "model_index.json", is_distilled=True)
    base = BaseModel(str(copied))
    assert base.is_distilled
    with pytest.raises(UserError, match=r"is distilled.*allow_distilled: true"):
        check_trainable(base, allow_distilled=False)
    check_trainable(base, allow_distilled=True)


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_absent_parts_are_named(copied, part):
    shutil.rmtree(copied / part)
    base = BaseModel(str(copied))
    with pytest.raises(UserError, match=rf"{part}/.*config\.json is missing|{part}/\w+config\.json is missing"):
        getattr(base, part)


def test_absent_and_incomplete_weights_are_named(copied):
    path = copied / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights.pop("decoder.conv_out.weight")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"vae lack 1 tensors, the first is 'decoder\.conv_out\.weight'"):
        assert BaseModel(str(copied)).vae
    path.unlink()
    with pytest.raises(UserError, match=r"vae holds no \.safetensors file"):
        assert BaseModel(str(copied)).vae


def test_incomplete_text_encoder_is_not_filled_with_random_values(copied):
    path = copied / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    weights.pop("model.layers.3.self_attn.q_proj.weight")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="text_encoder lack 1 tensors"):
        assert BaseModel(str(copied)).text_encoder


def test_unknown_source_says_what_to_fetch(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        UserError, match=r"'nobody/no-such-model' at revision abc.*hf download nobody/no-such-model --revision abc"
    ):
        assert BaseModel("nobody/no-such-model", revision="abc").layout
    with pytest.raises(UserError, match="neither a folder nor"):
        assert BaseModel(str(tmp_path / "absent")).layout
    with pytest.raises(UserError, match=r"no model_index\.json"):
        assert BaseModel(str(tmp_path)).layout
    with pytest.raises(UserError, match="dtype 'fp8'"):
        BaseModel(str(tmp_path), dtype="fp8")


def test_hub_cache_is_read_offline_and_its_commit_is_the_fingerprint(tiny_folder, tmp_path):
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--someone--klein-tiny"
    shutil.copytree(tiny_folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        base = BaseModel("someone/klein-tiny")
        assert base.fingerprint == f"someone/klein-tiny@{commit}"
        assert base.transformer.config["num_layers"] == 2


def test_fingerprint_follows_content_and_not_place_or_time(tiny_folder, copied, tmp_path):
    cache = tmp_path / "digests.json"
    base = BaseModel(str(copied), fingerprint_cache=cache)
    assert base.fingerprint == BaseModel(str(tiny_folder), fingerprint_cache=cache).fingerprint
    assert len(base.fingerprint) == 64
    path = copied / "transformer" / "diffusion_pytorch_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    changed = folder_fingerprint(copied, cache)
    assert changed != base.fingerprint
    change(copied / "scheduler" / "scheduler_config.json", shift=2.0)
    assert folder_fingerprint(copied, cache) not in (changed, base.fingerprint)


def test_known_files_are_not_hashed_again_and_a_broken_cache_costs_time_only(copied, tmp_path, monkeypatch):
    cache = tmp_path / "digests.json"
    cache.write_text("not json")
    first = folder_fingerprint(copied, cache)
    monkeypatch.setattr(fingerprint, "sha256_of_file", lambda path: pytest.fail(f"hashed {path} again"))
    assert folder_fingerprint(copied, cache) == first


def test_sha256_of_a_file_equals_hashlib(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 5_000_000)
    assert fingerprint.sha256_of_file(path) == hashlib.sha256(b"x" * 5_000_000).hexdigest()


def test_manifest_is_the_fingerprint_and_must_be_true_to_the_folder(copied):
    (copied / "manifest.json").write_text(json.dumps({"files": {"model_index.json": "00"}}))
    first = folder_fingerprint(copied)
    (copied / "manifest.json").write_text(json.dumps({"files": {"model_index.json": "01"}}))
    assert folder_fingerprint(copied) != first
    (copied / "manifest.json").write_text(json.dumps({"files": {"vae/absent.safetensors": "01"}}))
    with pytest.raises(UserError, match=r"lists 'vae/absent\.safetensors'"):
        folder_fingerprint(copied)
    (copied / "manifest.json").write_text("[]")
    with pytest.raises(UserError, match="must hold"):
        folder_fingerprint(copied)


def test_expected_sha256_is_checked(tiny_folder, tmp_path):
    cache = tmp_path / "digests.json"
    digest = folder_fingerprint(tiny_folder, cache)
    assert BaseModel(str(tiny_folder), sha256=digest, fingerprint_cache=cache).fingerprint == digest
    with pytest.raises(UserError, match=f"{digest}, but {'0' * 64} is expected"):
        assert BaseModel(str(tiny_folder), sha256="0" * 64, fingerprint_cache=cache).fingerprint
