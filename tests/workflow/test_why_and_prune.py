"""Before a run it is said what was edited and what starts; and pruning frees the store without touching the next run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.workflow.conftest import ONE_PHASE
from tests.workflow.project import HOUSE, Project

from likeness.store import Store, sha256_of_file
from likeness.tables import DECISIONS, read_rows

pytestmark = pytest.mark.slow
BEHIND = ("encode_samples", "train_lora", "score_base", "score_checkpoints", "choose_checkpoint", "publish_lora")


def call(project: Project, program: str, *arguments: str, code: int = 0) -> str:
    """Run one of the programs for people in the project's folder."""
    command = [sys.executable, str(HOUSE / "scripts" / f"{program}.py"), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=project.folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def parts(text: str) -> tuple[str, str, str]:
    """What changed, what will start, and what starts only if the selection changes."""
    changed, _, rest = text.partition("\n\nWhat will start: ")
    certain, _, conditional = rest.partition("\n\nOnly if the selection changes: ")
    return changed, certain, conditional


def photo_with(project: Project, rule: str) -> Path:
    rows = read_rows(project.folder / "results/robin/phases/decisions.parquet", DECISIONS)
    name = min(row["id"] for row in rows if row["rule"] == rule)
    return project.folder / "data" / "robin" / f"{name}.png"


def test_every_kind_of_edit_is_named(project: Project) -> None:
    assert "Nothing to do" in call(project, "explain_run")

    path = photo_with(project, "top")
    before = path.read_bytes()
    Image.fromarray((np.asarray(Image.open(path)) * 0.97).astype(np.uint8)).save(path, compress_level=1)
    changed, certain, conditional = parts(call(project, "explain_run"))
    assert changed == f"What changed\n  robin: photo data/robin/{path.name} was edited"
    assert "index_photos" in certain and "decide_phases" in certain and "minutes by their last runs" in certain
    for rule in BEHIND:
        assert rule in conditional and rule not in certain
    path.write_bytes(before)

    csv = project.folder / "results" / "robin" / "captions.csv"
    lines = csv.read_text()
    csv.write_text(lines.replace("close portrait", "small portrait", 1))
    changed, certain, _ = parts(call(project, "explain_run"))
    assert "robin: captions.csv, line photo-" in changed and "small portrait" in changed
    assert "write_captions" in certain and "measure_quality" not in certain
    csv.write_text(lines)

    project.configure(ONE_PHASE.replace("top: 4", "top: 3") + "training: {rank: 2}\n", "robin")
    changed, certain, conditional = parts(call(project, "explain_run"))
    assert "robin: setting phases.main.top: 4 → 3" in changed and "robin: setting training.rank: 4 → 2" in changed
    assert "train_lora" in certain and "publish_lora" in certain and "encode_samples" in conditional
    project.configure(ONE_PHASE, "robin")

    path.rename(path.with_name("renamed.png"))
    photo_with(project, "kept").unlink()
    changed, _, _ = parts(call(project, "explain_run"))
    assert f"photo data/robin/{path.name} was renamed to data/robin/renamed.png" in changed
    assert changed.count("was removed") == 1 and "was edited" not in changed


def test_edited_code_is_named_with_its_file(project: Project) -> None:
    record = next(
        path
        for path in (project.folder / ".snakemake" / "metadata").iterdir()
        if json.loads(path.read_text())["rule"] == "merge_masks"
    )
    noted = json.loads(record.read_text())
    current = next(param for param in noted["params"] if '"code"' in param)
    digest = json.loads(current[1:-1])["code"]
    noted["params"] = [param.replace(digest, "0" * 16) for param in noted["params"]]
    noted["endtime"] = (HOUSE / "scripts/likeness/masks/merge.py").stat().st_mtime - 1
    record.write_text(json.dumps(noted))
    changed, certain, _ = parts(call(project, "explain_run"))
    assert "code of merge_masks: scripts/" in changed and "edited" in changed
    assert "merge_masks" in certain


def test_pruning_frees_what_no_result_names_and_the_next_run_has_nothing_to_do(project: Project) -> None:
    lora = project.folder / "results/robin/lora/robin.safetensors"
    published = sha256_of_file(lora)
    store = Store(project.folder / "results" / ".store")
    planted = store.save("crops", "f" * 64, {}, {"file": b"a crop of a photo that is gone"}).files["file"]
    assert "crops" in call(project, "prune_store") and store.blob_path(planted).exists()

    locks = project.folder / ".snakemake" / "locks"
    locks.mkdir(exist_ok=True)
    (locks / "0.input.lock").write_text("photos")
    assert "a run is on" in call(project, "prune_store", "--yes", code=2)
    (locks / "0.input.lock").unlink()

    assert "freed" in call(project, "prune_store", "--yes")
    assert not store.blob_path(planted).exists() and store.blob_path(published).exists()
    assert project.succeed().jobs == set()
    assert sha256_of_file(lora) == published


def test_a_checkpoint_that_was_pruned_is_not_trained_again(project: Project) -> None:
    steps = project.folder / "results/robin/train/main/main/steps.json"
    store = Store(project.folder / "results" / ".store")
    first = json.loads(steps.read_text())[0]["sha256"]
    store.blob_path(first).unlink()  # as pruning does with one that was not chosen
    steps.unlink()
    run = project.succeed(str(steps.relative_to(project.folder)))
    assert run.jobs == {"train_lora/robin/main/main"}
    assert "training" not in run.computed and run.models == {}
    assert store.blob_path(first).exists()
