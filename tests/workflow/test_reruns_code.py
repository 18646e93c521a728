"""What an edit of the code starts: the jobs of the stage, and no item unless the stage's version says so."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.workflow.project import Project, copy_house
from tests.workflow.table import (
    Edit,
    Scene,
    Step,
    choice,
    decision,
    follow,
    scores,
    training,
)

pytestmark = pytest.mark.slow

MASKS = {
    *(f"{rule}/robin/{shard}" for rule in ("make_masks", "measure_quality", "write_captions") for shard in (0, 1)),
    *(f"{rule}/robin" for rule in ("merge_masks", "merge_quality", "merge_captions")),
    *decision("robin"),
}


def comment(*modules: str) -> Edit:
    """Add a comment to modules of the code."""

    def edit(scene: Scene) -> None:
        for module in modules:
            path = scene.project.house / "scripts" / module
            path.write_text(f"{path.read_text(encoding='utf-8')}# A remark.\n", encoding="utf-8")

    return edit


def rewrite(file: str, old: str, new: str) -> Edit:
    """Replace a piece of a file of the code."""

    def edit(scene: Scene) -> None:
        path = scene.project.house / file
        text = path.read_text(encoding="utf-8")
        assert text.count(old) >= 1
        path.write_text(text.replace(old, new), encoding="utf-8")

    return edit


TABLE = {
    "what no stage uses: other programs, an export that is not asked for, the lock file": [
        Step(comment("try_lora.py", "check_machine.py", "likeness/exports/fal.py", "likeness/exports/simpletuner.py")),
        Step(rewrite("envs/lock.txt", "--hash=sha256:", "--hash=sha256:0")),
    ],
    "a comment in the masks, then their version raised": [
        Step(comment("likeness/masks/stage.py"), MASKS),
        Step(
            rewrite("scripts/likeness/masks/stage.py", "\nVERSION = 1\n", "\nVERSION = 2\n"),
            MASKS,
            {"masks": 8},
            {"make_masks": 2},
        ),
    ],
    "a comment in the training": [
        Step(
            comment("likeness/training/loop.py"),
            {*training("robin", "main"), *scores("robin", "main"), *choice("robin"), "write_report"},
        ),
    ],
}


@pytest.mark.parametrize("name", TABLE)
def test_an_edit_of_the_code(name: str, project: Project, finished: Path, tmp_path: Path) -> None:
    project.house = copy_house(tmp_path / "house")
    follow(Scene(project, finished), TABLE[name])
