"""Three phases that start from each other's weights, beside a second subject: what an edit leaves out starts nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.workflow.project import Project
from tests.workflow.table import (
    Edit,
    Scene,
    Step,
    base,
    choice,
    configure,
    curation,
    darken,
    decision,
    encoding,
    follow,
    nothing,
    revert,
    scores,
    settings,
    training,
)

from likeness.tables import DECISIONS, QUALITY, read_rows

pytestmark = pytest.mark.slow

PHASES = ("wide", "middle", "fine")
TWO_PHOTOS = {"photos": 2, "faces": 2, "crops": 2, "masks": 2, "crop_masks": 4, "quality": 2}


def both(edit_of_robin: Edit, edit_of_wren: Edit) -> Edit:
    """Two edits at once."""

    def edit(scene: Scene) -> None:
        edit_of_robin(scene)
        edit_of_wren(scene)

    return edit


def keep_two_in_the_middle(scene: Scene) -> None:
    """Narrow the second phase to what the third trains on, so that the first and the third keep their samples."""
    results = scene.project.folder / "results" / "robin"
    rows = read_rows(results / "phases" / "decisions.parquet", DECISIONS)
    kept = {row["id"] for row in rows if row["phase"] == "middle" and row["kept"]}
    measured = read_rows(results / "quality.parquet", QUALITY)
    sharpness = sorted((row["sharpness"] for row in measured if row["id"] in kept), reverse=True)
    limit = (sharpness[1] + sharpness[2]) / 2
    configure('"brightness > 1"', f'"brightness > 1 AND sharpness > {limit}"', "robin")(scene)


TABLE = {
    "unselected photos of two subjects changed at once, and reverted": [
        Step(
            both(darken("top"), darken("never", "wren")),
            {*curation("robin", "top"), *curation("wren", "never")},
            TWO_PHOTOS,
            {"detect_faces": 2, "make_masks": 2},
        ),
        Step(
            both(revert("top"), revert("never", "wren")),
            {*curation("robin", "top"), *curation("wren", "never")},
        ),
        Step(nothing),
    ],
    "top raised where no more rows exist": [
        Step(configure("top: 9", "top: 12", "wren"), {*decision("wren"), *settings("wren")}),
    ],
    "the second phase's condition changed": [
        Step(
            keep_two_in_the_middle,
            {
                *decision("robin"),
                *settings("robin"),
                *encoding("robin", "middle"),
                *training("robin", "middle", "fine"),
                *base("robin"),
                *scores("robin", *PHASES),
                *choice("robin"),
            },
            # The two phases' checkpoints on the select half; one turns out the finalist and is drawn on the report half.
            {"training-steps": 4, "generated-images": 3, "score-faces": 3, "score-pixels": 3, "score-diversity": 3},
            {"train_lora": 2, "score_checkpoints": 6, "score_finalists": 3},
        ),
    ],
}


@pytest.mark.parametrize("name", TABLE)
def test_an_edit_starts_what_depends_on_it(name: str, pair: Project, finished_pair: Path) -> None:
    follow(Scene(pair, finished_pair), TABLE[name])
