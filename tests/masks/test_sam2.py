"""Both SAM 2 backends with real classes and tiny random weights: prompts in, a mask of the photo's size out."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from likeness.config.masks import MaskSettings
from likeness.errors import UserError
from likeness.faces.detector import Face
from likeness.masks.masker import masker_class

FACE = Face((60, 40, 110, 100), None, 0.9)
IMAGE = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
with_package = pytest.mark.skipif(find_spec("sam2") is None, reason="the optional extra sam2 is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    from likeness.miniature.sam2 import build_sam2

    return build_sam2(tmp_path_factory.mktemp("sam2") / "model")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    from likeness.miniature.sam2 import build_sam2_checkpoint

    return build_sam2_checkpoint(tmp_path_factory.mktemp("sam2-package"))[1]


def settings_for(backend: str, source: object) -> MaskSettings:
    return MaskSettings.model_validate({"backend": backend, "model": None if source is None else str(source)})


def check_masks(backend: str, source: Path, store: Path) -> None:
    settings = settings_for(backend, source)
    masker = masker_class(backend)(settings, store, True, 1)
    first = {kind: masker.mask(IMAGE, FACE, kind) for kind in ("face", "head", "person")}
    for mask in first.values():
        assert mask.shape == (150, 200) and mask.dtype == bool
    # Random weights know nothing, but what they see and are asked must reach the mask.
    assert any((first["face"] != first[kind]).any() for kind in ("head", "person"))
    other = masker.mask(IMAGE[::-1].copy(), FACE, "face")
    assert (other != first["face"]).any()
    again = masker_class(backend)(settings, store, True, 1).mask(IMAGE, FACE, "face")
    assert np.array_equal(again, first["face"])
    assert len(masker_class(backend).fingerprint(settings, store, True)) == 64


def test_transformers(folder, tmp_path, no_network):
    check_masks("sam2", folder, tmp_path)
    assert no_network == []


@with_package
def test_package(checkpoint, tmp_path, no_network):
    check_masks("sam2-package", checkpoint, tmp_path)
    assert no_network == []


def test_absent_transformers_weights_name_file_and_folder(tmp_path, monkeypatch, no_network):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    settings = MaskSettings()
    with pytest.raises(UserError, match=r"model\.safetensors.*models--facebook--sam2\.1-hiera-tiny"):
        masker_class("sam2").fingerprint(settings, tmp_path, True)
    with pytest.raises(UserError, match=r"config\.json, model\.safetensors") as caught:
        masker_class("sam2").fingerprint(settings_for("sam2", tmp_path / "none"), tmp_path, True)
    assert str(tmp_path / "none") in str(caught.value) and no_network == []


def test_folder_without_its_processor(folder, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(UserError, match=r"processor_config\.json"):
        masker_class("sam2")(settings_for("sam2", tmp_path), tmp_path, True, 1)


def test_torn_weights_are_said(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[:500])
    with pytest.raises(UserError, match="not a Sam2Model"):
        masker_class("sam2")(settings_for("sam2", tmp_path), tmp_path, True, 1)


def test_absent_checkpoint_names_file_and_folder(tmp_path):
    with pytest.raises(UserError, match=r"sam2\.1_hiera_tiny\.pt") as caught:
        masker_class("sam2-package").fingerprint(
            settings_for("sam2-package", tmp_path / "sam2.1_hiera_tiny.pt"), tmp_path, True
        )
    assert str(tmp_path) in str(caught.value)


def test_checkpoint_of_unknown_config(tmp_path):
    (tmp_path / "mine.pt").write_bytes(b"x")
    with pytest.raises(UserError, match=r"mine\.yaml"):
        masker_class("sam2-package").fingerprint(settings_for("sam2-package", tmp_path / "mine.pt"), tmp_path, True)


@pytest.mark.parametrize("backend", ["sam2", "sam2-package"])
def test_no_model_set(backend, tmp_path):
    with pytest.raises(UserError, match=r"masks\.model"):
        masker_class(backend)(settings_for(backend, None), tmp_path, True, 1)


def test_published_configs_exist():
    if find_spec("sam2") is None:
        pytest.skip("the optional extra sam2 is not installed")
    from importlib.resources import files

    from likeness.masks.sam2_package import PUBLISHED

    assert len(PUBLISHED) == 8
    assert all((files("sam2") / name).is_file() for name in PUBLISHED.values())


def test_mistyped_backend_gets_the_nearest_name():
    with pytest.raises(UserError, match="did you mean 'grabcut'"):
        masker_class("grabcat")
