"""Conda files are generated from the lock; the lock names no host."""

from __future__ import annotations

import re

import pytest

from generate_environments import STAGES, pins, render
from likeness.config.load import HOUSE

LOCK = (HOUSE / "envs" / "lock.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("stage", STAGES)
def test_conda_files_are_up_to_date(stage: str) -> None:
    assert (HOUSE / "envs" / f"{stage}.yaml").read_text(encoding="utf-8") == render(stage, pins(LOCK)), (
        "run scripts/generate_environments.py"
    )


def test_the_lock_names_no_host_and_hashes_everything() -> None:
    assert not re.search(r"https?://|file:", LOCK)
    packages = re.split(r"^(?=\S)", LOCK, flags=re.MULTILINE)[1:]
    assert len(packages) > 150
    assert all("--hash=sha256:" in package for package in packages)
