"""The whole way on a tiny random model: base, checkpoints, finalists, choice."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from tests.tiny import save_tiny

from likeness.config.base import ModelSource
from likeness.errors import DamagedFileError, UserError
from likeness.evaluation.choice import best_record
from likeness.evaluation.draw import LoraFile, Request
from likeness.evaluation.metrics import REGISTRY
from likeness.evaluation.prompts import GridPoint
from likeness.evaluation.score import (
    Entry,
    Shot,
    Workplace,
    column_label,
    entries_of_files,
    entries_of_steps,
    loras_by_hash,
    names_phase,
    score_base,
    score_checkpoints,
    score_finalists,
    subject_name,
)
from likeness.evaluation.scores import Checkpoint
from likeness.store import Store, sha256_of_file
from likeness.tables import SCORES, read_rows


def workplace_of(project, **changes):
    stage = project.stage.model_copy(update=changes) if changes else project.stage
    return Workplace(stage, project.holdout, project.manifests, project.images, project.store())


def run_checkpoints(project):
    """Score the base and the checkpoints as the programs do."""
    score_base(workplace_of(project), project.evaluation("base"))
    entries = entries_of_steps("main", "main", project.steps, project.store())
    score_checkpoints(workplace_of(project), entries, project.evaluation("base"), project.evaluation("main", "main"))


def run_all(project):
    """Score everything; returns all score rows."""
    run_checkpoints(project)
    store = project.store()
    tables = [project.evaluation("main", "main") / "scores.parquet"]
    loras = loras_by_hash([project.steps], [], store)
    score_finalists(
        workplace_of(project),
        project.choice,
        tables,
        loras,
        project.evaluation("base"),
        project.evaluation("report-half"),
    )
    folders = [project.evaluation("base"), project.evaluation("main", "main"), project.evaluation("report-half")]
    return [row for folder in folders for row in read_rows(folder / "scores.parquet", SCORES)]


def test_whole_way_gives_every_metric_of_every_image_and_a_choice(project):
    rows = run_all(project)
    base = [row for row in rows if row["variant"] == "base"]
    assert len({(row["prompt_id"], row["seed"]) for row in base}) == 6 * 2
    per_image = Counter((row["variant"], row["step"], row["lora_scale"], row["prompt_id"], row["seed"]) for row in rows)
    assert set(per_image.values()) == {len(REGISTRY)}
    assert all((row["value"] is None) == (row["status"] != "ok") for row in rows)
    assert {row["step"] for row in rows if row["variant"] == "main" and row["split"] == "select"} == {250, 500, 750}
    calibration = json.loads((project.evaluation("base") / "calibration.json").read_text())
    assert calibration["n_genuine"] == 6 and calibration["n_impostor"] == 6
    assert calibration["recogniser"] == "arcface-toy-1"
    best = best_record(rows, project.choice, calibration)
    assert best["variant"] == "main" and best["identity_metric"] in ("likeness", "csim")
    assert best["metrics"]["csim"]["n"] == 2


def test_second_run_computes_nothing_and_writes_the_same_bytes(project):
    run_checkpoints(project)
    table = project.evaluation("main", "main") / "scores.parquet"
    before = sha256_of_file(table)
    table.unlink()
    workplace = workplace_of(project)
    entries = entries_of_steps("main", "main", project.steps, workplace.store)
    score_checkpoints(workplace, entries, project.evaluation("base"), project.evaluation("main", "main"))
    assert sha256_of_file(table) == before
    assert not +workplace.store.computed
    assert workplace.models_loaded == 0


def test_one_more_prompt_costs_only_its_own_images_and_changes_no_other(project):
    run_checkpoints(project)
    folder = project.evaluation("main", "main")
    before = {
        (row["step"], row["prompt_id"], row["seed"]): row["image"] for row in read_rows(folder / "scores.parquet")
    }
    more = project.stage.prompts | {"beach": project.stage.prompts["garden"].model_copy(update={"text": "a beach"})}
    workplace = workplace_of(project, prompts=more)
    entries = entries_of_steps("main", "main", project.steps, workplace.store)
    score_checkpoints(workplace, entries, project.evaluation("base"), folder)
    after = {(row["step"], row["prompt_id"], row["seed"]): row["image"] for row in read_rows(folder / "scores.parquet")}
    assert workplace.store.computed["generated-images"] == 2 * (1 + 3)
    assert {key: after[key] for key in before} == before
    fresh = workplace_of(project, prompts=more)
    fresh.store.root = project.folder / "fresh"
    score_checkpoints(fresh, entries, project.evaluation("base"), project.folder / "other" / "evaluation" / "x")
    rows = read_rows(project.folder / "other" / "evaluation" / "x" / "scores.parquet")
    assert {(row["step"], row["prompt_id"], row["seed"]): row["image"] for row in rows} == after


def test_edit_is_measured_against_source_and_target(edit_project):
    rows = run_all(edit_project)
    ours = [row for row in rows if row["variant"] == "main" and row["lora_scale"] == 1.0]
    errors = [row["value"] for row in ours if row["metric"] == "target_error"]
    assert errors and all(0 <= value <= 1 for value in errors)
    assert all(row["status"] == "ok" for row in ours if row["metric"] == "background_ssim")
    assert {row["source_id"] for row in rows} == {"pair-0", "pair-1", "pair-2"}
    halves = {row["source_id"]: row["split"] for row in rows if row["variant"] == "base"}
    assert set(halves.values()) == {"select", "report"}
    assert {row["status"].split(":")[0] for row in ours if row["metric"] == "likeness"} == {"not_applicable"}
    best = best_record(rows, edit_project.choice, {})
    assert best["identity_metric"] == "target_error"


def test_by_products_that_no_row_names_are_deleted(project):
    folder = project.evaluation("base")
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "old.png").write_bytes(b"old")
    score_base(workplace_of(project), folder)
    assert not (folder / "images" / "old.png").exists()
    named = {row["image"] for row in read_rows(folder / "scores.parquet")}
    assert {sha256_of_file(path) for path in (folder / "images").rglob("*.png")} == named
    assert (folder / "sheet.jpg").stat().st_size > 1000


def test_changed_lora_file_is_found_by_its_hash(project):
    score_base(workplace_of(project), project.evaluation("base"))
    store = project.store()
    (project.steps.parent / "step-000250.safetensors").write_bytes(b"damaged")
    with pytest.raises(DamagedFileError, match="damaged or missing"):
        entries_of_steps("main", "main", project.steps, store)


def test_external_files_get_steps_from_their_names_or_places(project):
    folder = project.steps.parent
    store = project.store()
    entries = entries_of_files("old", "files", sorted(folder.glob("*.safetensors")), store)
    assert [entry.checkpoint.step for entry in entries] == [250, 500, 750]
    assert all(store.blob_path(entry.lora.sha256).is_file() for entry in entries)
    (folder / "a.safetensors").write_bytes((folder / "step-000250.safetensors").read_bytes())
    entries = entries_of_files("old", "files", sorted(folder.glob("*.safetensors")), store)
    assert [entry.checkpoint.step for entry in entries] == [1, 2, 3, 4]
    with pytest.raises(UserError, match=r"variants\.old\.lora"):
        entries_of_files("old", "files", [], store)


def test_subject_is_the_folder_above_evaluation(tmp_path):
    assert subject_name(tmp_path / "jane" / "evaluation" / "base") == "jane"
    with pytest.raises(UserError, match="evaluation"):
        subject_name(tmp_path / "jane")


def test_finalists_are_drawn_over_strengths_on_the_report_half_and_on_the_distilled_model(project, tmp_path):
    save_tiny(tmp_path / "distilled", seed=6, is_distilled=True)
    distilled = ModelSource(source=str(tmp_path / "distilled"))
    evaluation = project.stage.evaluation.model_copy(update={"distilled_model": distilled})
    project.stage = project.stage.model_copy(update={"evaluation": evaluation})
    rows = run_all(project)
    own = {row["base_model"] for row in rows if row["variant"] == "base" and row["split"] == "report"}
    finalist = [row for row in rows if row["variant"] == "main" and row["split"] == "report"]
    assert len(own) == 1 and {row["base_model"] for row in finalist} == own
    strengths = {row["lora_scale"] for row in rows if row["step"] == finalist[0]["step"] and row["split"] == "select"}
    assert strengths == {0.5, 1.0}
    others = [row for row in rows if row["base_model"] not in own]
    assert {row["variant"] for row in others} == {"base", "main"} and {row["split"] for row in others} == {"select"}
    compared = [row for row in others if row["variant"] == "main" and row["metric"] == "colour_shift"]
    assert compared and all(row["status"] == "ok" for row in compared)
    names = {path.parent.name for path in (project.evaluation("report-half") / "images").rglob("*.png")}
    assert any(name.endswith("-distilled") for name in names) and any("strength-0.5" in name for name in names)


def test_numbers_that_no_table_holds_are_no_steps(tmp_path):
    for name in ("a-20260101123456789012345.safetensors", "b-500.safetensors"):
        (tmp_path / name).write_bytes(name.encode())
    entries = entries_of_files("old", "files", sorted(tmp_path.glob("*.safetensors")), Store(tmp_path / "store"))
    assert [entry.checkpoint.step for entry in entries] == [1, 2]


def test_the_sheet_tells_phases_apart_where_there_are_several():
    point = GridPoint("garden", "subject", "x", 1, "select", 64, 64)

    def shot(phase, step=250):
        lora = LoraFile(Path("x"), f"{phase}{step}")
        return Shot(Entry(Checkpoint("main", phase, step), lora), Request(point, lora), "sha", "base")

    shots = [shot("broad"), shot("skin"), shot("skin", 500)]
    labels = [column_label(one, "", names_phase(shots)) for one in shots]
    assert labels == ["main broad 250", "main skin 250", "main skin 500"]
    assert column_label(shots[1], "", names_phase(shots[1:])) == "main 250"
