"""Steps of phases as the pages count them: with `auto`, keys of a phase, and phases that start afresh or follow."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.report.conftest import curation_of, report_of
from tests.report.fabricate import (
    Run,
    character_settings,
    curate_character,
    curate_edit,
    edit_settings,
    evaluate_character,
    evaluate_edit,
)

from likeness.config.training import AUTO_FLOOR
from likeness.report.charts import draw
from likeness.report.curves import colour_of, curve_points, steps_before, strength_chart, training_of
from likeness.report.flags import seen_per_photo
from likeness.report.gather import gather_curation, gather_subject
from likeness.store import write_atomically

NAME = "robin"


def character(folder: Path, **settings: Any) -> Run:
    made = Run(folder, {NAME: character_settings(folder, **settings)})
    curate_character(made, NAME, side_px=32)
    return made


def edit(folder: Path, **phases: dict[str, Any]) -> Run:
    made = Run(folder, {NAME: edit_settings(folder, phases=phases)})
    curate_edit(made, NAME)
    return made


def test_both_pages_show_a_run_whose_steps_are_auto(tmp_path: Path) -> None:
    run = character(tmp_path, training={"steps": "auto", "batch_size": 8}, variants={"main": {}})
    evaluate_character(run, NAME)
    assert "robin" in curation_of(run) and "optimizer steps" in report_of(run)


def test_auto_counts_the_samples_of_each_phase(tmp_path: Path) -> None:
    phases: dict[str, Any] = {"broad": {"training": {"steps": "auto"}}, "clean": {}, "best": {"steps": 7}}
    run = Run(tmp_path, {NAME: edit_settings(tmp_path, phases=phases, training={"steps": "auto", "rank": 8})})
    curate_edit(run, NAME, count=90)
    subject = gather_curation(run.results, NAME, run.settings[NAME])
    found = {phase: training_of(subject, "main", phase) for phase in phases}
    assert {phase: one and one.fixed_steps for phase, one in found.items()} == {
        "broad": max(AUTO_FLOOR, 30 * 12),
        "clean": max(AUTO_FLOOR, 30 * 8),
        "best": 7,
    }


def test_keys_of_a_phase_count(tmp_path: Path) -> None:
    """11 photos; 300 steps of 4 pictures each, not the subject's 1000 of one."""
    run = character(
        tmp_path,
        training={"steps": 1000, "batch_size": 1},
        phases={"main": {"training": {"steps": 300, "batch_size": 4}}},
        variants={"main": {}},
    )
    subject = gather_curation(run.results, NAME, run.settings[NAME])
    assert seen_per_photo(subject, subject.kept) == pytest.approx(300 * 4 / 11)


@pytest.mark.parametrize(
    ("init", "before"), [("previous", 150), ("previous:style", 150), ("scratch", 0), ("old.safetensors", 0)]
)
def test_a_phase_counts_on_where_it_starts_from_the_weights_before(tmp_path: Path, init: str, before: int) -> None:
    groups = {"adapter": {"groups": {"style": "attention"}}} if ":" in init else {}
    run = edit(
        tmp_path, broad={"steps": 150, "training": groups}, clean={"steps": 100, "init": init}, best={"steps": 50}
    )
    subject = gather_curation(run.results, NAME, run.settings[NAME])
    assert steps_before(subject) == {
        ("main", "broad"): 0,
        ("main", "clean"): before,
        ("main", "best"): before + 100,
    }


def test_the_report_counts_the_steps_that_were_taken(tmp_path: Path) -> None:
    """Another trainer may end earlier than asked; the phase after it then begins there."""
    run = edit(tmp_path, broad={"steps": 150}, clean={"steps": 100}, best={"steps": 50})
    evaluate_edit(run, NAME)
    listed = [{"step": step, "file": f"step-{step:06d}.safetensors", "sha256": ""} for step in (50, 120)]
    write_atomically(run.results / NAME / "train" / "main" / "broad" / "steps.json", json.dumps(listed).encode())
    points = curve_points(gather_subject(run.results, NAME, run.settings[NAME]), "target_error")["main"]
    assert [point.total_steps for point in points if point.checkpoint.phase == "clean"] == [170, 220]


def test_the_chosen_variant_has_its_own_colour_over_strength_too(tmp_path: Path) -> None:
    run = character(tmp_path, variants={"long": {}, "main": {}})
    evaluate_character(run, NAME)
    subject = gather_subject(run.results, NAME, run.settings[NAME])
    assert subject.chosen is not None and subject.chosen.variant == "main"
    assert [colour_of(subject, name) for name in ("long", "main", "made-by-surgery")] == [0, 1, 2]
    chart = strength_chart(subject)
    assert chart is not None
    places = set(re.findall(r'class="(?:line|dot|band) (c\d)"', draw(chart)))
    assert places == {"c1"}
