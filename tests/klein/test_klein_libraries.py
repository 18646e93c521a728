"""The libraries of the model come without what they do not need, and leave no trace of having come so."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from likeness.klein.libraries import left_out


def test_what_is_left_out_can_be_imported_afterwards() -> None:
    name = "wave"
    sys.modules.pop(name, None)
    with left_out(name), pytest.raises(ImportError):
        __import__(name)
    assert name not in sys.modules
    assert __import__(name).open


def test_what_is_imported_already_stays() -> None:
    with left_out("subprocess"):
        assert sys.modules["subprocess"] is subprocess


def test_no_quantiser_is_imported_in_vain() -> None:
    code = """
import sys
from likeness.klein.libraries import pipeline_class
pipeline_class()
import torch
from peft import LoraConfig, inject_adapter_in_model
inject_adapter_in_model(LoraConfig(target_modules=["0"]), torch.nn.Sequential(torch.nn.Linear(2, 2)))
assert "bitsandbytes" not in sys.modules
from bitsandbytes.optim.adamw import AdamW8bit
print("still there")
"""
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "still there\n", done.stderr
