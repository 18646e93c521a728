"""From photos to a published LoRA once, then edits: exactly the jobs that depend on an edit start, and what is paid for stays."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.workflow.conftest import SUBJECT
from tests.workflow.project import Project, Run

from likeness.store import sha256_of_file
from likeness.tables import DECISIONS, HOLDOUT, MANIFEST, SCORES, read_rows

pytestmark = pytest.mark.slow

CONTRACT = (
    "scores.parquet",
    "report/index.html",
    "report/curate.html",
    "robin/config.yaml",
    "robin/photos.parquet",
    "robin/faces.parquet",
    "robin/masks.parquet",
    "robin/quality.parquet",
    "robin/captions.parquet",
    "robin/captions.csv",
    "robin/phases/main.parquet",
    "robin/phases/holdout.parquet",
    "robin/phases/decisions.parquet",
    "robin/train/main/main/log.parquet",
    "robin/train/main/main/steps.json",
    "robin/train/main/main/step-000010.safetensors",
    "robin/evaluation/main/main/scores.parquet",
    "robin/evaluation/base/scores.parquet",
    "robin/evaluation/main/main/sheet.jpg",
    "robin/best.json",
    "robin/lora/robin.safetensors",
    "robin/lora/robin.comfyui.safetensors",
    "robin/lora/README.md",
)
GPU = ("Encode", "Train", "Score", "Choose", "Publish")


def decisions(project: Project) -> dict[str, str]:
    """Which rule decided about each photo."""
    rows = read_rows(project.folder / "results/robin/phases/decisions.parquet", DECISIONS)
    return {row["id"]: row["rule"] for row in rows}


def photo_with(project: Project, rule: str) -> Path:
    name = sorted(name for name, found in decisions(project).items() if found == rule)[0]
    return project.folder / "data" / "robin" / f"{name}.png"


def darken(path: Path) -> None:
    """Change a photo a little, in place."""
    pixels_HWC = np.asarray(Image.open(path))
    Image.fromarray((pixels_HWC * 0.97).astype(np.uint8)).save(path, compress_level=1)


def costly(run: Run) -> set[str]:
    return {job for job in run.jobs if job.startswith(GPU)}


def test_every_contract_file_is_there(project: Project) -> None:
    results = project.folder / "results"
    for name in CONTRACT:
        assert (results / name).exists(), name
    assert len(read_rows(results / "scores.parquet", SCORES)) > 50


def test_held_out_photos_never_reach_training(project: Project) -> None:
    phases = project.folder / "results" / "robin" / "phases"
    held = {row["image_sha256"] for row in read_rows(phases / "holdout.parquet", HOLDOUT)}
    trained = {row["image_sha256"] for row in read_rows(phases / "main.parquet", MANIFEST)}
    assert len(held) == 2 and len(trained) == 6 and not held & trained


def test_nothing_to_do_in_a_moved_and_touched_folder(project: Project) -> None:
    for path in (project.folder / "data" / "robin").iterdir():
        path.touch()
    assert project.succeed().jobs == ()


def test_an_unselected_photo_changed_and_reverted_trains_nothing(project: Project) -> None:
    path = photo_with(project, "top")
    before = path.read_bytes()
    darken(path)
    run = project.succeed()
    assert costly(run) == set()
    assert sum(job.startswith("Index photos") for job in run.jobs) == 1
    assert sum(job.startswith("Detect faces") for job in run.jobs) == 1
    path.write_bytes(before)
    assert costly(project.succeed()) == set()
    assert project.succeed().jobs == ()


def test_a_held_out_photo_changed_scores_again_and_trains_nothing(project: Project) -> None:
    darken(photo_with(project, "held_out"))
    run = project.succeed()
    assert not any(job.startswith(("Train", "Encode")) for job in run.jobs)
    assert any(job.startswith("Score") for job in run.jobs)


def test_a_selected_photo_changed_trains_again_and_reverting_brings_the_lora_back(project: Project) -> None:
    lora = project.folder / "results" / "robin" / "lora" / "robin.safetensors"
    before = sha256_of_file(lora)
    path = photo_with(project, "kept")
    bytes_before = path.read_bytes()
    darken(path)
    assert any(job.startswith("Train") for job in project.succeed().jobs)
    assert "training: 10 steps computed" in project.log("train_lora/robin/main/main")
    assert sha256_of_file(lora) != before
    assert list((lora.parent / "archive").iterdir())
    path.write_bytes(bytes_before)
    project.succeed()
    assert "training: 0 steps computed" in project.log("train_lora/robin/main/main")
    assert sha256_of_file(lora) == before


def test_a_caption_edited_by_hand_is_read_back_and_measures_nothing(project: Project) -> None:
    csv = project.folder / "results" / "robin" / "captions.csv"
    name = photo_with(project, "kept").stem
    lines = csv.read_text().splitlines()
    place = next(place for place, line in enumerate(lines) if line.startswith(f"{name},"))
    lines[place] = lines[place].replace("close portrait", "small portrait", 1)
    csv.write_text("\n".join(lines) + "\n")
    run = project.succeed()
    assert not any(job.startswith(("Measure", "Detect", "Make", "Index")) for job in run.jobs)
    captions = [row["caption"] for row in read_rows(project.folder / "results/robin/phases/main.parquet", MANIFEST)]
    assert sum("small portrait" in caption for caption in captions) == 1
    assert project.succeed().jobs == ()


def test_a_renamed_photo_computes_and_trains_nothing(project: Project) -> None:
    path = photo_with(project, "kept")
    path.rename(path.with_name("renamed.png"))
    started = {job for job in project.succeed().jobs if job.startswith(("Detect", "Make", "Measure", *GPU))}
    assert started and not any(job.startswith(GPU) for job in started)
    shards = {job.rsplit(" ", 1)[1] for job in started}
    for stage in ("detect_faces", "make_masks", "measure_quality"):
        for shard in shards:
            assert " 0 computed" in f" {project.log(f'{stage}/robin/{shard}')}".replace("no items", "0 computed")


def test_a_pick_publishes_another_checkpoint_and_draws_nothing(project: Project) -> None:
    best = json.loads((project.folder / "results/robin/best.json").read_text())
    other = 5 if best["step"] == 10 else 10
    project.configure(SUBJECT.format(top=6) + f"pick: {{variant: main, phase: main, step: {other}}}\n", "robin")
    run = project.succeed()
    assert costly(run) == {"Choose the checkpoint of robin", "Publish the LoRA of robin"}
    assert json.loads((project.folder / "results/robin/best.json").read_text())["step"] == other


def test_deleted_results_cost_no_training_while_the_store_is_kept(project: Project) -> None:
    lora = sha256_of_file(project.folder / "results/robin/lora/robin.safetensors")
    shutil.rmtree(project.folder / "results" / "robin")
    project.succeed()
    assert "training: 0 steps computed" in project.log("train_lora/robin/main/main")
    assert sha256_of_file(project.folder / "results/robin/lora/robin.safetensors") == lora
