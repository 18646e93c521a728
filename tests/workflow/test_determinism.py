"""Two fresh runs in different folders, on different numbers of cores, give the same bytes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from tests.workflow.faults import difference, snapshot
from tests.workflow.project import Project

pytestmark = pytest.mark.slow


def test_a_second_fresh_run_elsewhere_with_more_cores_gives_every_file_again(finished: Path, tmp_path: Path) -> None:
    """Every file below results but logs, benchmarks and the cache of model hashes: those hold times."""
    again = Project(tmp_path / "another" / "folder")
    for name in ("config", "data", "models"):
        copy = os.link if name == "models" else shutil.copy2
        shutil.copytree(finished / name, again.folder / name, copy_function=copy, dirs_exist_ok=True)
    run = again.run(cores=4)
    assert run.code == 0, run.text
    first, second = snapshot(finished), snapshot(again.folder)
    for kind in (".parquet", ".safetensors", ".png", ".html", ".json", ".csv", ".jpg"):
        assert any(name.endswith(kind) for name in first), f"no {kind} was made"
    assert difference(first, second) == []
