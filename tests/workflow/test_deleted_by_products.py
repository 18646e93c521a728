"""Files for people that were deleted come back with the next run, from the store, and start nothing a second time."""

from __future__ import annotations

import pytest
from tests.workflow.faults import difference, remove, snapshot
from tests.workflow.project import Project
from tests.workflow.test_why_and_prune import call

pytestmark = pytest.mark.long

LORA = [
    f"robin/lora/{name}" for name in ("robin.safetensors", "robin.comfyui.safetensors", "README.md", "images/red.png")
]

TIMES = "report/index.html"
"""The page that tells how long the jobs of each rule took."""


def heal(project: Project, *names: str) -> set[str]:
    """Delete results, run, expect them back and a second run with nothing to do; the jobs that started."""
    before = snapshot(project.folder)
    assert set(names) <= set(before)
    remove(project.folder, *names)
    run = project.succeed()
    assert set(difference(before, snapshot(project.folder))) <= {TIMES} and run.computed == {}
    assert project.succeed().jobs == set()
    return run.jobs


def test_a_published_lora_comes_back_each_time(project: Project) -> None:
    assert heal(project, *LORA) == {"publish_lora/robin", "write_report"}
    assert heal(project, LORA[1]) == {"publish_lora/robin", "write_report"}


def test_captions_csv_is_written_anew(project: Project) -> None:
    decided = {"merge_captions/robin", "decide_phases/robin"}
    assert heal(project, "robin/captions.csv") == decided
    assert heal(project, "robin/captions.csv", LORA[0]) == {*decided, "publish_lora/robin", "write_report"}


def test_what_is_gone_is_told_before_the_run(project: Project) -> None:
    remove(project.folder, "robin/captions.csv", LORA[0])
    told = call(project, "explain_run")
    for path in ("results/robin/captions.csv", f"results/{LORA[0]}"):
        assert f"  robin: {path} is gone and is put back\n" in told
    assert "nothing that Snakemake can name" not in told


def test_what_went_to_the_archive_may_be_deleted(project: Project) -> None:
    archived = "results/robin/lora/archive/0123456789ab/robin.safetensors"
    path = project.folder / archived
    path.parent.mkdir(parents=True)
    path.write_bytes(b"an older LoRA")
    remove(project.folder, LORA[0])
    assert project.succeed().jobs == {"publish_lora/robin", "write_report"}
    assert "archive/0123456789ab" in (project.folder / "results/robin/lora/published.json").read_text()
    remove(project.folder, "robin/lora/archive")
    assert project.succeed().jobs == set()
