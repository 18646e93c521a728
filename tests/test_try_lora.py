"""`make try` where there is nothing to draw with: the reason is that of this subject, not that nobody ran."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.workflow.project import Project

PROGRAM = Path(__file__).parents[1] / "scripts" / "try_lora.py"
STYLE = (
    "recipe: style\ntrigger: inkw4sh\nphotos: data\nbase_model: miniature\nevaluation: {recogniser_backend: opencv}\n"
)
NOTHING = {"variant": None, "rule": "no choice: every checkpoint missed a floor"}


def refused(folder: Path, *flags: str) -> str:
    command = [sys.executable, str(PROGRAM), "--name", "ink", "--prompt", "a tree", "--folder", str(folder), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("best", "said"),
    [
        (None, "ink has no published LoRA yet. Run: .venv/bin/python -m snakemake --cores all ink"),
        (
            NOTHING,
            "no checkpoint was chosen, so no LoRA is published: every checkpoint missed a floor. Choose one by hand",
        ),
        ({"variant": "main", "rule": "best"}, "ink: the chosen LoRA is not published yet. Run:"),
    ],
)
def test_why_there_is_no_lora_is_that_of_the_choice(tmp_path: Path, best: dict | None, said: str) -> None:
    Project(tmp_path).configure(STYLE, "ink")
    (tmp_path / "results" / "ink").mkdir(parents=True)
    if best is not None:
        (tmp_path / "results" / "ink" / "best.json").write_text(json.dumps(best), "utf-8")
    assert said in refused(tmp_path)


def test_a_scale_that_is_no_number_is_named(tmp_path: Path) -> None:
    assert "--scale: invalid" in refused(tmp_path, "--scale", "abc")
