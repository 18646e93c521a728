"""A lost file's makers start again: the tables that name it go, all others stay."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from likeness.errors import DamagedFileError
from likeness.healing import forget, subject_folders
from likeness.program import run
from likeness.store import Store, write_atomically
from likeness.tables import ENCODED, MASKS, PHOTOS, SCORES, write_table

LOST, KEPT = "ab" * 32, "cd" * 32
ENCODED_ROW = {
    "sample_id": "s",
    "resolution_px": 16,
    "width_px": 16,
    "height_px": 16,
    "latents_sha256": KEPT,
    "reference_latents_sha256s": [KEPT],
    "embedding_sha256": KEPT,
    "empty_embedding_sha256": KEPT,
    "repeats": 1,
}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Results of two subjects; robin's name the lost file once a stage, jane's everywhere."""
    results = tmp_path / "results"
    for subject in ("robin", "jane"):
        for place, sha256 in enumerate((LOST, KEPT if subject == "robin" else LOST)):
            folder = results / subject
            mask = {"id": "a", "role": "photo", "kind": "head", "mask_sha256": sha256, "status": "ok", "reason": ""}
            write_table(folder / f"shards/masks/{place}.parquet", MASKS, [mask])
            row = ENCODED_ROW | {"reference_latents_sha256s": [KEPT, sha256]}
            write_table(folder / f"encoded/variant{place}/main.parquet", ENCODED, [row])
            steps = [{"step": 5, "file": "step-000005.safetensors", "sha256": sha256}]
            write_atomically(folder / f"train/main/phase{place}/steps.json", json.dumps(steps).encode())
            write_table(folder / f"evaluation/main/phase{place}/scores.parquet", SCORES, [score(sha256)])
            photo = {"id": "drawn-0000", "path": "0000.png", "sha256": sha256, "status": "ok", "reason": ""}
            write_table(folder / f"regularisation/{place}.parquet", PHOTOS, [photo | {"repeats": 1}])
            write_atomically(folder / f"surgery/small{place}.json", json.dumps(steps).encode())
        write_table(folder / "masks.parquet", MASKS, [mask | {"mask_sha256": LOST}])
    return results


def score(image: str) -> dict[str, object]:
    texts = ("subject", "variant", "phase", "lora_sha256", "base_model", "prompt_id", "source_id", "prompt", "split")
    return dict.fromkeys((*texts, "metric", "status", "metric_version"), "") | {
        "step": 5,
        "lora_scale": 1.0,
        "seed": 1,
        "image": image,
    }


def test_tables_that_name_it_are_removed_from_the_jobs_subject_alone(results: Path) -> None:
    before = {path for path in results.rglob("*") if path.is_file()}
    removed = forget(LOST, ["train_lora.py", "--output-folder", str(results / "robin/train/main/phase0")])
    assert {path.relative_to(results / "robin").as_posix() for path in removed} == {
        "shards/masks/0.parquet",
        "regularisation/0.parquet",
        "encoded/variant0/main.parquet",
        "surgery/small0.json",
        "train/main/phase0/steps.json",
        "evaluation/main/phase0/scores.parquet",
    }
    assert {path for path in results.rglob("*") if path.is_file()} == before - set(removed)
    assert forget(LOST, ["--output-folder", str(results / "robin/train/main/phase0")]) == []


def test_the_jobs_subjects_come_from_its_command(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(results.parent)
    words = ["--settings", '{"settings": {}}', "--store", "results/.store", "--output", "results/robin/masks.parquet"]
    assert subject_folders(words) == [Path("results/robin")]
    assert subject_folders(["results/jane/a/b.parquet", *words]) == [Path("results/jane"), Path("results/robin")]
    assert subject_folders(["--store", "/elsewhere/store/blobs", "--output", "report/index.html"]) == []


def test_a_program_that_misses_a_file_says_what_it_removed_and_that_a_rerun_helps(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "sys.argv", ["encode_samples.py", "--output", str(results / "robin/encoded/variant9/main.parquet")]
    )

    def main() -> None:
        Store(results / ".store").read_blob(LOST)

    with pytest.raises(SystemExit) as end:
        run(main)
    said = capsys.readouterr().err
    assert end.value.code == 75 and said.count("\n") == 1 and LOST in said
    assert "Run the same command again" in said and "robin/shards/masks/0.parquet" in said
    assert not (results / "robin/shards/masks/0.parquet").exists()
    with pytest.raises(DamagedFileError):
        main()
