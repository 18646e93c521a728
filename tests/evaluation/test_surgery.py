"""Candidates made by surgery: the arithmetic that was asked for, parents, reuse, and their place in the choice.

Oracle: full matrices of the parents' changes of weight.
"""

from __future__ import annotations

import json

import pytest
import torch
from tests.evaluation.conftest import lora_file
from tests.evaluation.test_score import run_checkpoints, workplace_of

from likeness.config.surgery import Parent, Surgery, SurgeryStage
from likeness.errors import UserError
from likeness.evaluation.choice import rank
from likeness.evaluation.draw import LoraFile
from likeness.evaluation.parents import Candidates, Found, find_parents
from likeness.evaluation.score import entries_of_steps, score_checkpoints
from likeness.evaluation.scores import Checkpoint, Scores
from likeness.evaluation.surgery import make_surgery
from likeness.lora.files import read_lora
from likeness.store import sha256_of_file
from likeness.tables import SCORES, read_rows
from likeness.tables_surgery import SURGERY


def stage_of(project, **entry):
    surgery = Surgery.model_validate(entry)
    return SurgeryStage(surgery=surgery, base_model=project.stage.base_model, choice=project.choice)


def found_of(path):
    return Found(LoraFile(path, sha256_of_file(path)), None, path.name)


@pytest.fixture
def files(project):
    """Three LoRAs of one shape, of which two differ in size only."""
    paths = [project.folder / f"{name}.safetensors" for name in ("full", "background", "other")]
    for path, (seed, strength) in zip(paths, ((1, 0.6), (2, 0.4), (3, 0.5)), strict=True):
        lora_file(path, project.base, seed, strength)
    return paths


def made(project, files, **entry):
    stage = stage_of(project, of=[str(path) for path in files[: entry.pop("parents", 1)]], **entry)
    parents = [found_of(path) for path in files[: len(stage.surgery.parents)]]
    output = project.results / "surgery" / "made.json"
    store = project.store()
    record = make_surgery(stage, parents, store, output)
    return read_lora(output.with_suffix(".safetensors")), record, store


def assert_changes(lora, expected):
    """Compare with full matrices by module name."""
    assert set(lora.modules) == set(expected)
    for name, module in lora.modules.items():
        assert torch.allclose(module.delta(), expected[name], atol=1e-4), name


def test_each_method_does_what_it_says(project, files):
    full, background, other = ({name: one.delta() for name, one in read_lora(path).modules.items()} for path in files)
    lora, record, _ = made(project, files, method="subtract", background=str(files[1]), alpha=0.5)
    assert_changes(lora, {name: full[name] - 0.5 * background[name] for name in full})
    assert record["ranks"] == {"4": len(full)} and record["modules"] == len(full)
    lora, _, _ = made(project, files, method="merge", parents=3, weights=[0.5, 1, -1])
    assert_changes(lora, {name: 0.5 * full[name] + background[name] - other[name] for name in full})
    lora, _, _ = made(project, files, method="average", parents=2)
    assert_changes(lora, {name: (full[name] + background[name]) / 2 for name in full})
    lora, _, _ = made(project, files, method="average", parents=3, ema=0.5)
    assert_changes(lora, {name: 0.25 * full[name] + 0.25 * background[name] + 0.5 * other[name] for name in full})
    lora, _, _ = made(project, files, method="merge", parents=2, combine="magnitude", density=1.0)
    assert_changes(lora, {name: full[name] + background[name] for name in full})
    lora, _, _ = made(project, files, method="weigh-blocks", blocks={"single": 0, "single.1": 0.5})
    kept = {name: one for name, one in full.items() if not name.startswith("single")}
    half = {name: 0.5 * one for name, one in full.items() if name.startswith("single_transformer_blocks.1.")}
    assert_changes(lora, kept | half)
    lora, record, _ = made(project, files, method="resize", rank=1)
    for name, module in lora.modules.items():
        left, singular, right = torch.linalg.svd(full[name].double(), full_matrices=False)
        best = left[:, :1] * singular[:1] @ right[:1]
        assert torch.allclose(module.delta().double(), best, atol=1e-4), name
    assert 0 < record["least_energy_kept"] < 1
    rows = read_rows(project.results / "surgery" / "made.modules.parquet", SURGERY)
    assert [row["module"] for row in rows] == sorted(full) and {row["rank_after"] for row in rows} == {1}
    assert min(row["retained_energy"] for row in rows) == record["least_energy_kept"] and "table" not in record


def test_a_second_run_computes_nothing_and_restores_the_file(project, files):
    _, record, store = made(project, files, method="resize", rank=1)
    assert store.computed["surgery"] == 1
    path = project.results / "surgery" / "made.safetensors"
    before = path.read_bytes()
    path.unlink()
    _, again, store = made(project, files, method="resize", rank=1)
    assert not +store.computed and again == record and path.read_bytes() == before
    _, _, store = made(project, files[1:], method="resize", rank=1)
    assert store.computed["surgery"] == 1


def test_candidates_are_scored_like_checkpoints_and_come_last_in_a_tie(project):
    run_checkpoints(project)
    store, tables = project.store(), [project.evaluation("main", "main") / "scores.parquet"]
    tables.append(project.evaluation("base") / "scores.parquet")
    whole = stage_of(project, method="weigh-blocks", of={"variant": "main", "step": 500}, blocks={"other": 0})
    parents = find_parents(whole.surgery.parents, [project.steps], Candidates([], {}), project.choice, store)
    record = project.results / "surgery" / "same.json"
    entry = make_surgery(whole, parents, store, record)
    assert entry["parents"] == [
        {
            "name": "main/main/500",
            "sha256": json.loads(project.steps.read_text())[1]["sha256"],
            "variant": "main",
            "phase": "main",
            "step": 500,
        }
    ]
    entries = entries_of_steps("same", "surgery", record, store)
    assert [one.checkpoint for one in entries] == [Checkpoint("same", "surgery", 0)]
    folder = project.evaluation("same", "surgery")
    score_checkpoints(workplace_of(project), entries, project.evaluation("base"), folder)
    rows = [row for table in [folder / "scores.parquet", *tables] for row in read_rows(table, SCORES)]
    scores = Scores(rows)
    assert scores.candidates[-1] == Checkpoint("same", "surgery", 0)
    twin, parent = Checkpoint("same", "surgery", 0), Checkpoint("main", "main", 500)
    ours, theirs = (scores.ranking_clusters(one, "csim") for one in (twin, parent))
    assert ours == pytest.approx(theirs, abs=5e-3)
    assert rank(scores, project.choice).chosen != twin


def test_parents_of_another_model_and_empty_results_are_refused(project, files):
    with pytest.raises(UserError, match="nothing would be left"):
        made(project, files, method="weigh-blocks", blocks={"single": 0, "double": 0})
    with pytest.raises(UserError, match=r"single\.7"):
        made(project, files, method="weigh-blocks", blocks={"single.7": 0})
    gone = Parent(file=str(project.folder / "gone.safetensors"))
    with pytest.raises(UserError, match="does not exist"):
        find_parents([gone], [project.folder / "gone.safetensors"], Candidates([], {}), project.choice, project.store())


def test_what_another_subject_publishes_is_a_parent(project, files):
    parent = Parent(subject="sam")
    folder = project.folder / "sam" / "lora"
    folder.mkdir(parents=True)
    file, record = folder / "sam.safetensors", folder / "published.json"
    file.write_bytes(files[1].read_bytes())
    record.write_text(json.dumps({"files": {"sam.safetensors": sha256_of_file(file)}}))
    (found,) = find_parents([parent], [record], Candidates([], {}), project.choice, project.store())
    assert (found.lora, found.checkpoint) == (LoraFile(file, sha256_of_file(file)), None)
    assert found.text == str(parent) == "published by sam"
    record.write_text(json.dumps({"files": {}, "reason": "no checkpoint was scored"}))
    with pytest.raises(UserError, match=r"subject sam publishes no LoRA: no checkpoint was scored\."):
        find_parents([parent], [record], Candidates([], {}), project.choice, project.store())
