"""Two fresh runs in different folders, on different numbers of cores, give the same bytes."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from tests.workflow.faults import difference, snapshot
from tests.workflow.project import Project

pytestmark = pytest.mark.slow

PAGE = "report/index.html"


def test_a_second_fresh_run_elsewhere_with_more_cores_gives_every_file_again(finished: Path, tmp_path: Path) -> None:
    """Every file below results but logs, benchmarks and the cache of model hashes, which hold times, as does one table of
    the report: the rest of that page is compared."""
    again = Project(tmp_path / "another" / "folder")
    for name in ("config", "data", "models"):
        copy = os.link if name == "models" else shutil.copy2
        shutil.copytree(finished / name, again.folder / name, copy_function=copy, dirs_exist_ok=True)
    run = again.run(cores=4)
    assert run.code == 0, run.text
    first, second = snapshot(finished), snapshot(again.folder)
    for kind in (".parquet", ".safetensors", ".png", ".html", ".json", ".csv", ".jpg"):
        assert any(name.endswith(kind) for name in first), f"no {kind} was made"
    assert set(difference(first, second)) <= {PAGE}
    assert without_times(finished / "results" / PAGE) == without_times(again.folder / "results" / PAGE)


def without_times(page: Path) -> str:
    """The report without its table of how long each rule took."""
    text, count = re.subn(r'<table class="timings">.*?</table>', "", page.read_text("utf-8"), flags=re.DOTALL)
    assert count == 1
    return text
