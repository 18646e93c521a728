"""`make doctor`: what is said of a GPU, its driver, and models that are not here."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from likeness.config.base import ModelSource
from likeness.config.subject import Subject
from likeness.models import WantedModel, refusal_of

SCRIPTS = Path(__file__).parents[1] / "scripts"
HUB = ModelSource(source="black-forest-labs/FLUX.2-klein-base-9B")
TOLD = "1500 steps, about 5 minutes on an H200 or 25 minutes on an RTX 4090"
WANTED = WantedModel(subject="jane", key="base_model", model=HUB)


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import check_machine

    return check_machine


def answering(monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> list[str]:
    """Let the hub answer so; returns what it is asked for."""
    asked: list[str] = []

    def auth_check(self: HfApi, repo_id: str) -> None:
        asked.append(repo_id)
        if error is not None:
            raise error

    monkeypatch.setattr(HfApi, "auth_check", auth_check)
    return asked


def hub_error(kind: type[Exception]) -> Exception:
    """An error of the hub without the answer that its constructor asks for."""
    return kind.__new__(kind)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (None, None),
        (hub_error(GatedRepoError), "is gated: accept its licence"),
        (hub_error(RepositoryNotFoundError), "the hub has no black-forest-labs/FLUX.2-klein-base-9B"),
        (ConnectionError("no route"), "could not be asked .* \\(ConnectionError\\)"),
    ],
)
def test_what_the_hub_says_of_a_model(error, expected, doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answering(monkeypatch, error)
    found = refusal_of(HUB)
    assert asked == [HUB.source]
    assert (found is None) == (expected is None) and (expected is None or re.search(expected, found or ""))
    state, what, text = doctor.check_model(WANTED, offline=False)
    assert (state, what) == ("MISSING", "jane: base_model") and "make models" in text
    assert found is None or found in text


def test_the_hub_is_not_asked_offline_nor_for_paths(doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answering(monkeypatch, None)
    assert doctor.check_model(WANTED, offline=True)[0] == "MISSING"
    absent = WantedModel(subject="jane", key="base_model", model=ModelSource(source=str(tmp_path / "absent")))
    assert doctor.check_model(absent, offline=False)[0] == "MISSING"
    (tmp_path / "klein").mkdir()
    here = WantedModel(subject="jane", key="base_model", model=ModelSource(source=str(tmp_path / "klein")))
    assert doctor.check_model(here, offline=False) == ("ok", "jane: base_model", str(tmp_path / "klein"))
    assert asked == []


def test_the_driver_is_named_and_one_that_torch_cannot_use_too(doctor, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.driver_version() is None
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 570.86.10\necho 570.86.10\n")
    program.chmod(0o755)
    assert doctor.driver_version() == "570.86.10"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (state, what, text), memory_gib = doctor.check_gpu()
    assert (state, what, memory_gib) == ("note", "gpu", 0.0) and "driver 570.86.10 is here, but torch" in text
    program.write_text("#!/bin/sh\nexit 9\n")
    assert doctor.driver_version() is None


@pytest.mark.parametrize(("gpu_gib", "small"), [(0, False), (8, True), (12, False)])
def test_what_a_training_needs_is_called_estimated(gpu_gib: float, small: bool, doctor) -> None:
    given = {"trigger": "j4ne", "photos": [{"path": "data"}], "training": {"rank": 32, "steps": 1500}}
    found = {what: (state, text) for state, what, text in doctor.check_subject("jane", Subject(**given), gpu_gib, True)}
    state, memory = found["jane: memory"]
    assert state == "note" and memory.startswith("estimated, not measured: 10 GiB of GPU memory at 1024 px")
    assert memory.endswith("this GPU is probably too small") == small
    assert found["jane: time"] == ("note", f"estimated, not measured: training {TOLD}; evaluation comes on top")


def test_the_program_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.yaml").write_text("subjects: {jane: 3}\n", "utf-8")
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "check_machine.py"), "--folder", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1 and "MISSING  configuration" in done.stdout and "Traceback" not in done.stderr
