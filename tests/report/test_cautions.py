"""Each caution both ways: on the page of the curation where a stage warned, and silent where it did not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.report.conftest import curation_of
from tests.report.fabricate import Run, character_settings, curate_character, hold_out

from likeness.report.cautions import cautions
from likeness.report.gather import gather_curation
from likeness.tables import CAPTIONS, DECISIONS, read_rows

FINDING = "face: blue eyes"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run(tmp_path, {"robin": character_settings(tmp_path)})
    curate_character(made, "robin", side_px=32)
    return made


def found(run: Run) -> dict[str, str]:
    return {flag.name: flag.text for flag in cautions(gather_curation(run.results, "robin", run.settings["robin"]))}


def caption(run: Run, name: str, **changes: Any) -> None:
    rows = read_rows(run.results / "robin" / "captions.parquet", CAPTIONS)
    assert name in {row["id"] for row in rows}
    run.write("robin", CAPTIONS, [row | changes if row["id"] == name else row for row in rows])


def test_a_curation_without_warnings_has_no_caution(run: Run) -> None:
    run.settings["robin"]["held_out"] = 2
    assert found(run) == {}


@pytest.mark.parametrize(("asked", "held", "raised"), [(20, 3, True), (3, 3, False), (1, 0, True), (0, 0, False)])
def test_fewer_held_out_than_asked_for(run: Run, asked: int, held: int, raised: bool) -> None:
    run.settings["robin"]["held_out"] = asked
    hold_out(run, "robin", [f"robin-{place:02d}" for place in range(held)])
    assert ("few held out" in found(run)) is raised
    page = curation_of(run)
    assert ("few held out" in page) is raised
    if raised:
        assert found(run)["few held out"].startswith(f"held_out asks for {asked}; only {held} can be: ")


def test_a_phase_that_keeps_nothing(run: Run) -> None:
    rows = read_rows(run.results / "robin" / "phases" / "decisions.parquet", DECISIONS)
    assert "empty phase" not in found(run)
    run.write("robin", DECISIONS, [row | {"kept": False, "rule": "where"} for row in rows], "phases/decisions")
    assert found(run)["empty phase"] == "phase main keeps no photo; every photo below says why"


def test_captions_by_hand_that_break_a_rule_stand_on_the_page(run: Run) -> None:
    caption(run, "robin-05", caption_by="sidecar", violations=[FINDING, "framing: full body"])
    assert found(run)["captions by hand"] == (
        "they are read as they are, but 1 broke a rule; robin-05: face: blue eyes; framing: full body"
    )
    page = curation_of(run)
    assert page.count("caption by hand: face: blue eyes; framing: full body") == 1


def test_what_a_model_broke_was_mended_and_is_no_caution(run: Run) -> None:
    caption(run, "robin-05", caption_by="endpoint", caption_raw="a person with blue eyes", violations=[FINDING])
    assert "captions by hand" not in found(run) and FINDING not in curation_of(run)
