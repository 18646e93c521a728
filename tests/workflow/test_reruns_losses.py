"""Two phases of which the second drops what the first learned worst: losses steer it, and nothing starts for nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.workflow.conftest import moved
from tests.workflow.project import Run
from tests.workflow.table import (
    Edit,
    Scene,
    Step,
    base,
    choice,
    configure,
    curation,
    darken,
    encoding,
    follow,
    nothing,
    scores,
    settings,
    training,
)

from likeness.tables import CANDIDATES, MANIFEST, REFINED, read_rows

pytestmark = pytest.mark.slow

PHASES = ("broad", "fine")
REFINING = {"refine_phase/robin/fine"}
ONE_PHOTO = {"photos": 1, "faces": 1, "crops": 1, "masks": 1, "crop_masks": 2, "quality": 1}


def exports(*phases: str) -> set[str]:
    return {f"export_dataset/robin/{phase}/simpletuner" for phase in phases}


def behind(*trained: str) -> set[str]:
    """What follows the second phase's manifest, where these phases are trained."""
    return {
        *REFINING,
        *encoding("robin", "fine"),
        *exports("fine"),
        *training("robin", *trained),
        *base("robin"),
        *scores("robin", *PHASES),
        *choice("robin"),
    }


def kept(scene: Scene, phase: str) -> list[str]:
    rows = read_rows(scene.project.folder / "results" / "robin" / "phases" / f"{phase}.parquet", MANIFEST)
    return [row["sample_id"] for row in rows]


def left_out(scene: Scene, count: int) -> None:
    """The second phase trains on the candidates in their order, without those with the highest percentiles."""
    folder = scene.project.folder / "results" / "robin" / "phases"
    candidates = [row["sample_id"] for row in read_rows(folder / "candidates" / "fine.parquet", CANDIDATES)]
    percentiles = {
        row["sample_id"]: row["train_loss_percentile"]
        for row in read_rows(folder / "refined" / "fine.parquet", REFINED)
    }
    assert sorted(percentiles.values()) == [10, 30, 50, 70, 90] and set(candidates) == set(kept(scene, "broad"))
    best = sorted(percentiles, key=lambda one: percentiles[one])[: 5 - count]
    assert kept(scene, "fine") == [one for one in candidates if one in best]


def one_is_left_out(scene: Scene, run: Run) -> None:
    left_out(scene, 1)


def two_are_left_out(scene: Scene, run: Run) -> None:
    left_out(scene, 2)


def train_otherwise(phase: str) -> Edit:
    return configure(f"{phase}: {{", f"{phase}: {{learning_rate: 4.0e-4, ", "robin")


TABLE = {
    "a photo that no phase trains on": [
        Step(nothing, then=one_is_left_out),
        Step(darken("top"), curation("robin", "top"), ONE_PHOTO, {"detect_faces": 1, "make_masks": 1}),
    ],
    "another threshold, then another training of the first phase": [
        Step(
            configure("train_loss_percentile < 80", "train_loss_percentile < 60", "robin"),
            {*behind("fine"), *settings("robin")},
            # The second phase's checkpoints on the select half; one turns out the finalist and is drawn on the report half.
            {"training-steps": 4, "generated-images": 3, "score-faces": 3, "score-pixels": 3, "score-diversity": 3},
            {"train_lora": 1, "score_checkpoints": 3, "score_finalists": 3},
            then=two_are_left_out,
        ),
        Step(
            train_otherwise("broad"),
            {*behind("broad", "fine"), *exports("broad"), *settings("robin")},
            {"training-steps": 8, "generated-images": 5, "score-faces": 5, "score-pixels": 5, "score-diversity": 5},
            {"train_lora": 2, "score_checkpoints": 6, "score_finalists": 3},
            then=two_are_left_out,
        ),
    ],
    "curation waits for no training": [
        Step(
            darken("kept"),
            (curation("robin", "kept") - {"write_report"}) | exports("broad"),
            ONE_PHOTO | {"export_mask": 1},
            {"detect_faces": 1, "make_masks": 1},
            target=("curate",),
        ),
    ],
}


@pytest.mark.parametrize("name", TABLE)
def test_an_edit_starts_what_depends_on_it(name: str, finished_with_losses: Path, tmp_path: Path) -> None:
    project = moved(finished_with_losses, tmp_path / "project")
    follow(Scene(project, finished_with_losses), TABLE[name])
