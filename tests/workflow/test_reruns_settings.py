"""What an edit of the settings starts, and what re-sharding and deleted results cost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.workflow.project import Project, Run
from tests.workflow.table import (
    STEPS_FILE,
    Scene,
    Step,
    append,
    base,
    choice,
    configure,
    curation,
    decision,
    encoding,
    follow,
    merges,
    scores,
    settings,
    shards,
    training,
)

from likeness.store import sha256_of_file
from likeness.tables import SCORES, read_rows

pytestmark = pytest.mark.slow

ROBIN = settings("robin")
EVERYTHING = {
    *curation("robin", 0, 1),
    *ROBIN,
    *encoding("robin", "main"),
    *training("robin", "main"),
    *base("robin"),
    *scores("robin", "main"),
    *choice("robin"),
}


def halves_of(folder: Path) -> dict[str, set[str]]:
    """In which halves each prompt is drawn."""
    halves: dict[str, set[str]] = {}
    for row in read_rows(folder / "results" / "scores.parquet", SCORES):
        halves.setdefault(row["prompt_id"], set()).add(row["split"])
    return halves


def no_half_changed(scene: Scene, run: Run) -> None:
    before, after = halves_of(scene.origin), halves_of(scene.project.folder)
    assert before == {"red": {"report"}, "blue": {"select"}}
    assert after == before | {"green": {"select"}}


def says_that_it_starts_anew(scene: Scene, run: Run) -> None:
    log = scene.project.log("train_lora/robin/main/main")
    assert "training: from the start, since a cosine schedule is drawn over all" in log


def pick_the_other(scene: Scene) -> None:
    best = json.loads((scene.origin / "results/robin/best.json").read_text())
    append(f"pick: {{variant: main, phase: main, step: {other_step(best)}}}\n", "robin")(scene)


def other_step(best: dict) -> int:
    return 2 if best["step"] == 4 else 4


def publishes_the_other(scene: Scene, run: Run) -> None:
    before = json.loads((scene.origin / "results/robin/best.json").read_text())
    after = json.loads((scene.project.folder / "results/robin/lora/published.json").read_text())
    assert after["step"] == other_step(before)


def delete_results(scene: Scene) -> None:
    """Delete all tables and pages; the store and what a hand decided stay."""
    for name in ("robin", "report"):
        shutil.rmtree(scene.project.folder / "results" / name)
    (scene.project.folder / "results" / "scores.parquet").unlink()


def same_tables(scene: Scene, run: Run) -> None:
    for name in ("scores.parquet", "robin/phases/main.parquet", "robin/lora/robin.safetensors", "robin/best.json"):
        assert sha256_of_file(scene.project.folder / "results" / name) == sha256_of_file(
            scene.origin / "results" / name
        ), name


GREEN = '    green: {text: "{trigger} {class}, close portrait, facing the camera, green background"}\n'
TABLE = {
    "a prompt added": [
        Step(
            configure("  prompts:\n", f"  prompts:\n{GREEN}"),
            {*ROBIN, *base("robin"), *scores("robin", "main"), *choice("robin")},
            {"embeddings": 1, "generated-images": 3, "score-faces": 3, "score-pixels": 3, "score-diversity": 3},
            {"score_base": 4, "score_checkpoints": 3},
            then=no_half_changed,
        ),
    ],
    "a strength added": [
        Step(
            configure("strengths: [1.0]", "strengths: [0.8, 1.0]"),
            {*ROBIN, *choice("robin")},
            # The new strength turns out the recommended one, at which the report half is drawn as well.
            {"generated-images": 2, "score-faces": 2, "score-pixels": 2, "score-diversity": 2},
            {"score_finalists": 3},
        ),
    ],
    "one interval more at a constant rate": [
        Step(
            configure("steps: 4\n", "steps: 6\n"),
            {*ROBIN, *training("robin", "main"), *scores("robin", "main"), *choice("robin")},
            {"training-steps": 2, "generated-images": 1, "score-faces": 1, "score-pixels": 1, "score-diversity": 1},
            {"train_lora": 1, "score_checkpoints": 3},
        ),
    ],
    "one interval more under cosine; rank and alpha swapped": [
        Step(
            configure("{name: constant}", "{name: cosine}"),
            training("robin", "main"),
            {"training-steps": 4},
            {"train_lora": 1},
            target=(STEPS_FILE,),
            then=says_that_it_starts_anew,
        ),
        Step(
            configure("steps: 4\n", "steps: 6\n"),
            training("robin", "main"),
            {"training-steps": 6},
            {"train_lora": 1},
            target=(STEPS_FILE,),
            then=says_that_it_starts_anew,
        ),
        Step(
            configure("rank: 4\n    alpha: 8\n", "rank: 8\n    alpha: 4\n"),
            training("robin", "main"),
            {"training-steps": 6},
            {"train_lora": 1},
            target=(STEPS_FILE,),
        ),
    ],
    "a variant added": [
        Step(
            append("variants: {main: {}, wide: {training: {rank: 8}}}\n", "robin"),
            {
                *ROBIN,
                *training("robin", "main", variant="wide"),
                *scores("robin", "main", variant="wide"),
                *choice("robin"),
            },
            # Its two checkpoints on the select half; one of them turns out the finalist and is drawn on the report half.
            {"training-steps": 4, "generated-images": 3, "score-faces": 3, "score-pixels": 3, "score-diversity": 3},
            {"train_lora": 1, "score_checkpoints": 3, "score_finalists": 3},
        ),
    ],
    "a variant with buckets of its own added": [
        Step(
            append("variants: {main: {}, big: {training: {buckets: {resolution_px: 18}}}}\n", "robin"),
            {
                *ROBIN,
                *encoding("robin", "main", variant="big"),
                *training("robin", "main", variant="big"),
                *scores("robin", "main", variant="big"),
                *choice("robin"),
            },
            # Its two checkpoints on the select half; the finalist is still another.
            {
                **{"latents": 4, "loss-weights": 4, "training-steps": 4},
                **{"generated-images": 2, "score-faces": 2, "score-pixels": 2, "score-diversity": 2},
            },
            {"encode_samples": 1, "train_lora": 1, "score_checkpoints": 3},
        ),
    ],
    "a checkpoint picked by hand": [
        Step(
            pick_the_other,
            {*ROBIN, "choose_checkpoint/robin", "publish_lora/robin"},
            then=publishes_the_other,
        ),
    ],
    "more shards": [
        Step(
            configure("shards: 2", "shards: 3"),
            {*shards("robin", 0, 1, 2), *merges("robin"), *decision("robin")},
        ),
    ],
    "results deleted, but not the store": [
        Step(delete_results, EVERYTHING, then=same_tables),
    ],
}


@pytest.mark.parametrize("name", TABLE)
def test_an_edit_starts_what_depends_on_it(name: str, project: Project, finished: Path) -> None:
    follow(Scene(project, finished), TABLE[name])


def test_other_bytes_in_the_lora_to_start_from_start_the_training(project: Project) -> None:
    target = "results/robin/train/main/main/steps.json"
    steps = [project.folder / f"results/robin/train/main/main/step-00000{step}.safetensors" for step in (2, 4)]
    first, second = (path.read_bytes() for path in steps)
    start = project.folder / "my loras" / "start.safetensors"
    start.parent.mkdir()
    start.write_bytes(first)
    project.reconfigure("top: 4}", 'top: 4, init: "my loras/start.safetensors"}', "robin")
    assert project.succeed(target).jobs == {"train_lora/robin/main/main"}
    made = steps[1].read_bytes()
    assert project.succeed(target).jobs == set()
    start.write_bytes(second)
    again = project.succeed(target)
    assert again.jobs == {"train_lora/robin/main/main"} and again.computed == {"training-steps": 4}
    assert steps[1].read_bytes() != made
    start.write_bytes(first)
    assert project.succeed(target).computed == {} and steps[1].read_bytes() == made


def test_a_recogniser_that_is_put_in_place_scores_what_a_descriptor_stood_in_for(project: Project) -> None:
    target, pack = "results/robin/best.json", project.folder / "packs" / "judge"
    scoring = {*base("robin"), *scores("robin", "main"), "score_finalists/robin", "choose_checkpoint/robin"}
    project.reconfigure("recogniser: miniature", "recogniser: ./packs/judge")
    calibration = project.folder / "results/robin/evaluation/base/calibration.json"
    assert project.succeed(target).jobs == scoring
    assert json.loads(calibration.read_bytes())["recogniser"].startswith("descriptor")
    table = read_rows(project.folder / "results/robin/evaluation/main/main/scores.parquet", SCORES)
    (status,) = {row["status"] for row in table if row["metric"] == "csim"}
    assert status.startswith("no_weights: evaluation.recogniser: no insightface pack './packs/judge'")
    assert project.succeed(target).jobs == set()
    shutil.copytree(project.folder / "models/miniature/pack/evaluation_pack", pack)
    found = project.succeed(target)
    assert found.jobs == scoring
    # The drawn world's own recogniser has the same bytes: its faces and scores are in the store.
    assert "generated-images" not in found.computed and "training-steps" not in found.computed
    assert not json.loads(calibration.read_bytes())["recogniser"].startswith("descriptor")
    assert project.succeed(target).jobs == set()
    shutil.rmtree(pack)
    assert project.succeed(target).jobs == set()
