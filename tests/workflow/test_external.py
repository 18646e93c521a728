"""A variant that another trainer makes is trained by its command, scored, and chosen like any other."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
from tests.workflow.project import HOUSE, Project

from likeness.tables import SCORES, read_rows

pytestmark = pytest.mark.slow
STAND_IN = HOUSE / "tests" / "training" / "stand_in.py"
VARIANTS = """\
variants:
  main: {{}}
  theirs: {{trainer: simpletuner}}
trainers:
  simpletuner:
    command: {python} {program} simpletuner {lora}
    environment: {{PYTHONPATH: {scripts}, OMP_NUM_THREADS: "1"}}
"""


def add_variant(project: Project) -> None:
    """A variant whose trainer learns exactly what ours has learned: the stand-in is given that LoRA."""
    lora = project.folder / "learned.safetensors"
    if not lora.exists():
        shutil.copyfile(project.folder / "results/robin/train/main/main/step-000004.safetensors", lora)
    text = VARIANTS.format(python=sys.executable, program=STAND_IN, lora=lora, scripts=HOUSE / "scripts")
    path = project.folder / "config/subjects/robin.yaml"
    project.configure(path.read_text() + text, "robin")


def values_of(project: Project, variant: str) -> dict[tuple[object, ...], object]:
    """Scores of a variant's last step."""
    path = project.folder / f"results/robin/evaluation/{variant}/main/scores.parquet"
    keys = ("prompt_id", "seed", "metric", "lora_scale")
    return {tuple(row[key] for key in keys): row["value"] for row in read_rows(path, SCORES) if row["step"] == 4}


def test_a_variant_of_another_trainer_is_scored_beside_ours_and_found_again(project: Project) -> None:
    add_variant(project)
    run = project.succeed()
    assert {job for job in run.jobs if job.startswith(("train", "encode"))} == {"train_external/robin/theirs/main"}
    assert "score_checkpoints/robin/theirs/main" in run.jobs
    assert run.computed["external"] == 1
    steps = json.loads((project.folder / "results/robin/train/theirs/main/steps.json").read_text())
    assert [entry["step"] for entry in steps] == [2, 4]
    ours, theirs = values_of(project, "main"), values_of(project, "theirs")
    assert set(ours) == set(theirs)
    assert all(theirs[key] == pytest.approx(value, abs=1e-4) for key, value in ours.items() if value is not None)
    best = json.loads((project.folder / "results/robin/best.json").read_text())
    assert best["rule"].startswith("earliest of 4 checkpoints"), "two of ours and two of theirs compete"
    again = project.succeed()
    assert not any(job.startswith(("train", "score", "choose", "publish")) for job in again.jobs)
    shutil.rmtree(project.folder / "results/robin/train/theirs")
    back = project.succeed("--", "results/robin/train/theirs/main/steps.json")
    assert back.reused["external"] == 1
    assert "external" not in back.computed
