"""One tiny saved pipeline for all tests of the model family."""

from __future__ import annotations

import pytest
import torch
from tests.tiny import save_tiny

from likeness.klein.load import BaseModel


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("tiny") / "base"
    save_tiny(folder, seed=3)
    return folder


@pytest.fixture(scope="session")
def tiny_base(tiny_folder, tmp_path_factory):
    return BaseModel(str(tiny_folder), fingerprint_cache=tmp_path_factory.mktemp("cache") / "digests.json")
