"""Publishing: both formats load in full, the card tells the truth, the previous LoRA goes to the archive."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.evaluation.conftest import write_steps
from tests.evaluation.test_choice import row_of

from likeness.errors import UserError
from likeness.evaluation.card import licence_verdict
from likeness.evaluation.publish import publish_lora
from likeness.evaluation.score import loras_by_hash
from likeness.klein.family import layout_of
from likeness.lora.comfyui import check_comfyui
from likeness.lora.files import read_lora
from likeness.store import sha256_of_file
from likeness.tables import SCORES, write_table


def best_of(project, at: int, **changes) -> Path:
    listed = json.loads(project.steps.read_text())
    sha256 = next(one["sha256"] for one in listed if one["step"] == at)
    best = {
        "variant": "main",
        "phase": "main",
        "step": at,
        "lora_scale": 0.8,
        "lora_sha256": sha256,
        "rule": "earliest of 3",
        "identity_metric": "likeness",
        "picked_by_hand": False,
        "metrics": {"likeness": {"value": 0.71, "low": 0.6, "high": 0.8, "n": 6}},
        "runners_up": [],
        "calibration": {
            "genuine": 0.9,
            "impostor": 0.1,
            "n_genuine": 6,
            "n_impostor": 4,
            "recogniser": "arcface-toy-1",
        },
    }
    path = project.results / "best.json"
    path.write_text(json.dumps(best | changes))
    return path


def publish(project, best: Path, rows=()) -> dict:
    table = project.results / "scores.parquet"
    write_table(table, SCORES, rows)
    store = project.store()
    return publish_lora(
        project.publish_stage,
        "jane",
        best,
        [table],
        loras_by_hash([project.steps], [], store),
        project.results / "phases" / "decisions.parquet",
        store,
        project.results / "lora",
    )


def test_both_formats_are_written_and_load_in_full(project):
    image = project.store().save_blob(b"a picture")
    rows = [
        row_of(
            "main", 250, "night", 3, "csim", 0.5, split="report", lora_scale=0.8, image=image, prompt="j4ne at night"
        )
    ]
    rows.append({**rows[0], "prompt_id": "boats", "prompt": "boats at dawn"})
    record = publish(project, best_of(project, 250), rows)
    folder = project.results / "lora"
    count = len(read_lora(folder / "jane.safetensors").modules)
    assert record["modules"] == count > 10
    assert record["files"]["jane.safetensors"] == record["lora_sha256"]
    layout = layout_of(json.loads((project.base / "transformer" / "config.json").read_text()))
    assert check_comfyui(folder / "jane.comfyui.safetensors", layout) > 5
    for name, sha256 in record["files"].items():
        assert sha256_of_file(folder / name) == sha256
    card = (folder / "README.md").read_text()
    for told in (
        "j4ne",
        "**0.8**",
        "0.710",
        "0.600 to 0.800",
        "dropped: sharpness | 2",
        "images/night.png",
        "agreement",
    ):
        assert told in card, told
    assert card.index("images/night.png") < card.index("images/boats.png") < card.index("(without the trigger)")
    assert (folder / "images" / "night.png").read_bytes() == b"a picture"


def test_previous_lora_goes_to_the_archive_and_the_same_one_does_not(project):
    first = publish(project, best_of(project, 250))
    again = publish(project, best_of(project, 250))
    folder = project.results / "lora"
    assert first == again and not (folder / "archive").exists()
    publish(project, best_of(project, 500))
    archived = folder / "archive" / first["lora_sha256"][:12]
    assert sha256_of_file(archived / "jane.safetensors") == first["lora_sha256"]
    assert (archived / "README.md").is_file() and (archived / "jane.comfyui.safetensors").is_file()


def test_without_a_choice_nothing_is_published_and_the_reason_is_told(project):
    empty = dict.fromkeys(("variant", "phase", "step", "lora_sha256", "lora_scale"))
    record = publish(project, best_of(project, 250, **empty, rule="no choice: nothing was measured"))
    assert record == {"subject": "jane", "reason": "no choice: nothing was measured", "files": {}}
    assert not (project.results / "lora" / "jane.safetensors").exists()


def test_lora_that_changes_nothing_is_refused(project):
    write_steps(project, {250: 0.0})
    with pytest.raises(UserError, match="changes nothing"):
        publish(project, best_of(project, 250))
    assert not (project.results / "lora" / "jane.safetensors").exists()


def test_program_publishes(project):
    best = best_of(project, 500)
    write_table(project.results / "scores.parquet", SCORES, [])
    settings = json.dumps({"settings": project.publish_stage.model_dump(mode="json"), "code": ""})
    command = [sys.executable, "scripts/publish_lora.py", "--settings", settings, "--subject", "jane", "--best", best]
    command += ["--scores", project.results / "scores.parquet", "--checkpoints", project.steps]
    command += ["--decisions", project.results / "phases" / "decisions.parquet"]
    command += ["--store", project.store().root, "--output-folder", project.results / "lora"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "published main, step 500" in done.stdout
    assert (project.results / "lora" / "jane.comfyui.safetensors").is_file()


@pytest.mark.parametrize(
    ("source", "recogniser", "commercial"),
    [
        ("black-forest-labs/FLUX.2-klein-base-9B", "arcface-own-1", "no"),
        ("black-forest-labs/FLUX.2-klein-base-4B", "arcface-own-1", "yes"),
        ("black-forest-labs/FLUX.2-klein-base-4B", "arcface-glintr100-123", "only without the insightface pack"),
        ("models/miniature/base", "arcface-own-1", "unknown"),
    ],
)
def test_licence_verdict(source, recogniser, commercial):
    verdict = licence_verdict(source, recogniser)
    assert verdict.commercial == commercial and verdict.reason
