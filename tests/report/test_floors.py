"""Which checkpoints missed which floor: planted misses are named, one that all share is told apart, kept ones are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.report.conftest import report_of
from tests.report.fabricate import Run, character_settings, character_values, curate_character, evaluate_character
from tests.report.reading import Page

from likeness.evaluation.scores import BASE_CHECKPOINT, Checkpoint
from likeness.report.floors import missed_floors
from likeness.report.gather import gather_subject

NAME = "robin"
FACELESS = (Checkpoint("long", "main", 250), Checkpoint("long", "main", 300))


def planted(at: Checkpoint, scale: float, prompt: str, seed: int) -> dict[str, float | str]:
    """Two checkpoints without a face in half of their pictures; one of them, and a third, all alike over seeds."""
    values: dict[str, Any] = character_values(at, scale, prompt, seed)
    if at in FACELESS:
        values["detected"] = float(seed % 2)
    if at in (FACELESS[1], Checkpoint("main", "main", 50)):
        values["diversity"] = 0.01
    values["background_ssim"] = 0.9 if at == BASE_CHECKPOINT else 0.4
    return values


def evaluated(folder: Path, **choice: Any) -> Run:
    run = Run(folder, {NAME: character_settings(folder, choice=choice, variants={"main": {}, "long": {}})})
    curate_character(run, NAME, side_px=32)
    evaluate_character(run, NAME, planted)
    return run


def test_planted_misses_are_told_by_floor(tmp_path: Path) -> None:
    run = evaluated(tmp_path, min_background_ssim=0.6)
    found = {one.floor: one for one in missed_floors(gather_subject(run.results, NAME, run.settings[NAME]))}
    assert set(found) == {"min_detected", "min_diversity", "min_background_ssim"}
    assert set(found["min_detected"].checkpoints) == {"long, step 250", "long, step 300"}
    assert set(found["min_diversity"].checkpoints) == {"long, step 300", "main, step 50"}
    assert found["min_background_ssim"].by_all and len(found["min_background_ssim"].checkpoints) == 10
    assert not found["min_detected"].by_all
    (listed,) = [one for one in Page(report_of(run)).elements if "missed" in one.attributes.get("class", "")]
    text = " ".join(listed.text.split())
    assert "min detected 2: long, step" in text and "min background ssim every checkpoint" in text


def test_floors_that_are_kept_or_not_set_are_not_told(tmp_path: Path) -> None:
    off = {"min_detected": None, "min_diversity": None}
    run = evaluated(tmp_path, **off)
    subject = gather_subject(run.results, NAME, run.settings[NAME])
    assert missed_floors(subject) == []
    assert "Floors that checkpoints missed" not in report_of(run)
