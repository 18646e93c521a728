"""Pruning keeps what results name and frees the rest: planted files of both kinds, for every stage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from tests.phases.fabricate import row_of

from likeness.errors import UserError
from likeness.packs import PackedItems
from likeness.pruning.keep import kept_of_results
from likeness.pruning.sweep import CHECKPOINTS, EXTERNAL, TORN, TRAININGS, find_waste
from likeness.store import Store, item_key, sha256_of_bytes
from likeness.tables import ENCODED, FACES, MASKS, PHOTOS, SCORES, Table, write_table
from likeness.training.encode import EMBEDDINGS, VERSION
from likeness.training.records import TrainingFolder


@dataclass
class House:
    """A results folder with one subject, and its store."""

    folder: Path

    def __post_init__(self) -> None:
        self.results, self.store = self.folder / "results", Store(self.folder / "results" / ".store")
        self.subject = self.results / "jane"
        self.subject.mkdir(parents=True)

    def item(self, stage: str, name: str, key: str | None = None) -> str:
        """Store an item with one file; returns the file's sha256."""
        item = self.store.save(stage, key or sha256_of_bytes(f"{stage} {name}".encode()), {}, {"file": name.encode()})
        return item.files["file"]

    def lora(self, name: str) -> str:
        return self.store.save_blob(f"weights of {name}".encode())

    def table(self, path: str, kind: Table, *rows: Mapping[str, Any]) -> None:
        write_table(self.subject / path, kind, [row_of(kind, **row) for row in rows])

    def json(self, path: str, value: Any) -> None:
        (self.subject / path).parent.mkdir(parents=True, exist_ok=True)
        (self.subject / path).write_text(json.dumps(value))

    def training(self, key: str, loras: Mapping[int, str]) -> TrainingFolder:
        """A training with a state a checkpoint."""
        folder = TrainingFolder(self.store.root / "trainings" / key, self.store)
        folder.folder.mkdir(parents=True)
        for step, sha256 in loras.items():
            folder.save(step, [], {"raw": sha256}, f"state {step}".encode(), {})
        return folder

    def prune(self) -> set[str]:
        """Remove what is waste; returns the stages of which something went."""
        waste = find_waste(self.store, kept_of_results([self.results]))
        waste.remove()
        return {stage for stage, count in waste.bytes_by_stage.items() if count}

    def has(self, sha256: str) -> bool:
        return self.store.blob_path(sha256).exists()


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def score(sha256: str, image: str, **more: Any) -> dict[str, Any]:
    return {"lora_sha256": sha256, "image": image, "base_model": "base", "prompt": "a cat", "metric": "csim"} | more


def test_crops_masks_and_samples_stay_as_far_as_tables_name_them(house: House) -> None:
    crop, mask, on_crop = house.item("crops", "kept"), house.item("masks", "kept"), house.item("crop_masks", "kept")
    latents, reference = house.item("latents", "kept"), house.item("reference-latents", "kept")
    gone = [house.item(stage, "gone") for stage in ("crops", "masks", "crop_masks", "latents", "reference-latents")]
    house.store.save("captions", "paid", {"text": "a caption"})
    house.table("shards/faces/0.parquet", FACES, {"id": "a", "role": "photo", "face": 0, "crop_sha256": crop})
    house.table("masks.parquet", MASKS, {"id": "a", "role": "photo", "mask_sha256": mask, "crop_mask_sha256": on_crop})
    house.table(
        "encoded/main/main.parquet", ENCODED, {"latents_sha256": latents, "reference_latents_sha256s": [reference]}
    )
    assert house.prune() == {"crops", "masks", "crop_masks", "latents", "reference-latents"}
    assert all(house.has(sha256) for sha256 in (crop, mask, on_crop, latents, reference))
    assert not any(house.has(sha256) for sha256 in gone)
    assert house.store.load("captions", "paid") is not None
    assert house.store.load("crops", sha256_of_bytes(b"crops gone")) is None
    assert house.prune() == set()


def test_pictures_of_the_class_stay_as_far_as_the_table_names_them(house: House) -> None:
    kept, gone = house.item("generated-images", "kept"), house.item("generated-images", "gone")
    drawn = {"id": "drawn-0000", "path": "0000.png", "sha256": kept, "status": "ok", "reason": "", "repeats": 1}
    house.table("regularisation/drawn.parquet", PHOTOS, drawn)
    assert house.prune() == {"generated-images"}
    assert house.has(kept) and not house.has(gone)


def test_chosen_checkpoints_and_their_images_stay(house: House) -> None:
    first, finalist, picked, last, old = (house.lora(name) for name in ("first", "finalist", "picked", "last", "old"))
    steps = [first, finalist, picked, last]
    house.json("train/main/one/steps.json", [{"step": step, "sha256": sha} for step, sha in enumerate(steps)])
    house.json("lora/published.json", {"lora_sha256": picked})
    house.json("lora/archive/abc/best.json", {"lora_sha256": old})
    image = {name: house.item("generated-images", name) for name in ("base", "first", "finalist", "picked")}
    house.table("evaluation/base/scores.parquet", SCORES, score("", image["base"], variant="base"))
    drawn = [score(first, image["first"]), score(picked, image["picked"])]
    house.table("evaluation/main/one/scores.parquet", SCORES, *drawn)
    house.table("evaluation/report-half/scores.parquet", SCORES, score(finalist, image["finalist"]))
    prompt = item_key(EMBEDDINGS, VERSION, None, "base", sha256_of_bytes(b"a cat"))
    known, unknown = house.item(EMBEDDINGS, "a cat", prompt), house.item(EMBEDDINGS, "a dog")
    assert house.prune() == {CHECKPOINTS, "generated-images", EMBEDDINGS}
    assert [house.has(sha256) for sha256 in (*steps, old)] == [False, True, True, True, True]
    assert [house.has(image[name]) for name in ("base", "first", "finalist", "picked")] == [True, False, True, True]
    assert house.has(known) and not house.has(unknown)


def test_superseded_trainings_go_unfinished_ones_stay(house: House) -> None:
    current = house.training("current", {1: house.lora("c1"), 2: house.lora("c2")})
    current.finish()
    superseded = house.training("superseded", {1: house.lora("s1")})
    superseded.finish()
    unfinished = house.training("unfinished", {1: house.lora("u1"), 2: house.lora("u2")})
    steps = [{"step": step, "sha256": house.lora(f"c{step}")} for step in (1, 2)]
    house.json("train/main/one/steps.json", steps)
    assert house.prune() == {CHECKPOINTS, TRAININGS}
    assert not superseded.folder.exists() and not house.has(sha256_of_bytes(b"weights of s1"))
    assert unfinished.checkpoints().keys() == {1, 2} and unfinished.last_state(2) is not None
    assert current.records().keys() == {1, 2} and not current.state_path(1).exists()
    assert current.checkpoints().keys() == {2} and current.last_state(2) is not None


def test_a_pruned_checkpoint_is_taken_back_from_the_results(house: House) -> None:
    training = house.training("current", {1: house.lora("c1"), 2: house.lora("c2")})
    beside = house.folder / "train"
    beside.mkdir()
    for step in (1, 2):
        house.store.restore(house.lora(f"c{step}"), beside / f"step-{step:06d}.safetensors")
        house.store.blob_path(house.lora(f"c{step}")).unlink()
    (beside / "step-000002.safetensors").write_bytes(b"other bytes")
    training.adopt(beside)
    assert training.checkpoints().keys() == {1}


def test_a_running_training_stops_the_pruning(house: House) -> None:
    training = house.training("busy", {})
    with FileLock(training.folder / "lock"), pytest.raises(UserError, match="is running"):
        find_waste(house.store, kept_of_results([house.results]))


def test_files_of_killed_jobs_go(house: House) -> None:
    blob = house.store.blob_path("ab" * 32)
    blob.parent.mkdir(parents=True)
    torn = blob.with_name(f".{blob.name}.123.tmp")
    torn.write_bytes(b"half")
    assert house.prune() == {"left half-written"} and not torn.exists()


def test_packed_records_stay_and_torn_packs_go(house: House) -> None:
    with PackedItems(house.store, "photos") as items:
        items.load_or_compute("a" * 64, lambda: {"phash": "0"})
    [pack] = (house.store.root / "packs" / "photos").iterdir()
    torn = pack.with_name(f".{pack.name}.123.tmp")
    torn.write_bytes(b"half")
    assert house.prune() == {TORN} and pack.exists() and not torn.exists()


def test_what_killed_jobs_of_other_trainers_left_goes_and_unfinished_work_stays(house: House) -> None:
    root = house.store.root / EXTERNAL
    rendered, unfinished, stored = root / ".0123456789ab", root / ("a" * 64), root / ("b" * 64)
    for folder in (rendered, unfinished, stored):
        (folder / "data").mkdir(parents=True)
        (folder / "data" / "photo.png").write_bytes(b"a photo")
    for folder in (unfinished, stored):
        folder.with_name(f"{folder.name}.lock").touch()
    house.store.save(EXTERNAL, stored.name, {"log": []})
    with FileLock(root / f"{unfinished.name}.lock"), pytest.raises(UserError, match="is running"):
        house.prune()
    assert rendered.exists()
    assert house.prune() == {TORN}
    assert not rendered.exists() and not stored.exists() and (unfinished / "data" / "photo.png").exists()
    assert house.prune() == set()


@pytest.mark.parametrize("path", ["encoded/main.parquet", "evaluation/base/scores.parquet"])
def test_results_of_an_earlier_version_are_left_for_a_run_to_renew(house: House, path: str) -> None:
    table = house.subject / path
    table.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"sample_id": ["a"]}), table)
    with pytest.raises(UserError, match=r"earlier version.* Run the workflow once, then prune") as caught:
        kept_of_results([house.results])
    assert "elete" not in str(caught.value)
