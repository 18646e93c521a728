"""Anything stored and damaged is found by its hash and made again, in the same run or the next, and never trained on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.workflow.conftest import moved
from tests.workflow.faults import Command, StageServer, commands, difference, remove, snapshot
from tests.workflow.project import Project, Run, read_work

from likeness.store import Store, sha256_of_file
from likeness.tables import ENCODED, FACES, MASKS, SCORES, read_rows

pytestmark = pytest.mark.slow

DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[: len(data) // 2],
    "flipped": lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :],
}

TRAIN, SCORE, FINALISTS = "train_lora/robin/main/main", "score_checkpoints/robin/main/main", "score_finalists/robin"


@dataclass
class Place:
    """A copy of the finished project, whose jobs are run one by one as Snakemake would start them."""

    folder: Path
    commands: dict[str, Command]
    server: StageServer

    @property
    def results(self) -> Path:
        return self.folder / "results"

    @property
    def store(self) -> Store:
        return Store(self.results / ".store")

    def blob(self, sha256: str) -> Path:
        return self.store.blob_path(sha256)

    def first_row(self, table: str, kind: object, column: str) -> Path:
        """The stored file that the first row of a table names."""
        rows = read_rows(self.results / "robin" / table, kind)  # pyright: ignore[reportArgumentType]
        return self.blob(next(row[column] for row in rows if row[column]))

    def by_product(self, step: int) -> Path:
        """A step file beside the training's tables."""
        return self.results / f"robin/train/main/main/step-{step:06d}.safetensors"

    def checkpoint(self, step: int) -> Path:
        """The stored file of a checkpoint."""
        return self.blob(sha256_of_file(self.by_product(step)))

    def records(self) -> list[Path]:
        """What trainings saved on their way."""
        return list((self.store.root / "trainings").glob("*/record-*"))

    def run(self, job: str) -> tuple[int, str]:
        """Run one job; its exit code and its log. Snakemake removes declared outputs first."""
        command = self.commands[job]
        remove(self.folder, *(output.removeprefix("results/") for output in command.outputs))
        return self.server.run(command, self.folder).code, (self.folder / command.log).read_text(errors="replace")

    def missing(self) -> list[str]:
        """Jobs whose declared outputs are not all there, in the order in which the first run finished them."""
        jobs = {
            name: command
            for name, command in self.commands.items()
            if not all((self.folder / output).exists() for output in command.outputs)
        }
        return sorted(jobs, key=lambda name: ORDER.index(name.partition("/")[0]))


ORDER = ["detect_faces", "make_masks", "encode_samples", "train_lora", "score_base", "score_checkpoints"]
ORDER += ["score_finalists", "merge_faces", "merge_masks", "measure_quality", "publish_lora"]


@dataclass(frozen=True)
class Case:
    """What is damaged, which job reads it and what that job needs to lose so that it reads, and who makes it again."""

    find: Callable[[Place], list[Path]]
    reader: str
    lost: tuple[str, ...]
    makers: tuple[str, ...] = ()
    computed: int = 1


CASES = {
    "record of an item": Case(
        lambda place: [min((place.store.root / "items" / "quality").rglob("*.json"))],
        "measure_quality/robin/{shard}",
        (),
    ),
    "pack of an index": Case(
        lambda place: [min((place.store.root / "packs" / "photos").iterdir())],
        "index_photos/robin/{shard}",
        (),
        computed=4,
    ),
    "crop": Case(
        lambda place: [place.first_row("shards/faces/0.parquet", FACES, "crop_sha256")],
        "merge_faces/robin",
        ("robin/images/crops",),
        ("detect_faces/robin/0",),
    ),
    "mask": Case(
        lambda place: [place.first_row("shards/masks/0.parquet", MASKS, "mask_sha256")],
        "merge_masks/robin",
        ("robin/images/masks",),
        ("make_masks/robin/0",),
    ),
    "latents": Case(
        lambda place: [place.first_row("encoded/main/main.parquet", ENCODED, "latents_sha256")],
        TRAIN,
        (".store/trainings",),
        ("encode_samples/robin/main/main",),
    ),
    "embedding": Case(
        lambda place: [place.first_row("encoded/main/main.parquet", ENCODED, "embedding_sha256")],
        TRAIN,
        (".store/trainings",),
        ("encode_samples/robin/main/main",),
    ),
    "loss weights": Case(
        lambda place: [place.first_row("encoded/main/main.parquet", ENCODED, "weight_sha256")],
        TRAIN,
        (".store/trainings",),
        ("encode_samples/robin/main/main",),
    ),
    "checkpoint and its by-product": Case(
        lambda place: [place.by_product(4), place.checkpoint(4)], SCORE, (), (TRAIN,), computed=0
    ),
    "by-product of a checkpoint alone": Case(lambda place: [place.by_product(4)], SCORE, (), computed=0),
    "checkpoint and the state it was saved with": Case(
        lambda place: [place.checkpoint(2), *(place.store.root / "trainings").glob("*/state-000002*")],
        TRAIN,
        (),
        computed=2,
    ),
    "generated image, for its maker": Case(
        lambda place: [place.first_row("evaluation/main/main/scores.parquet", SCORES, "image")], SCORE, ()
    ),
    "generated image, for publishing": Case(
        lambda place: [place.first_row("evaluation/report-half/scores.parquet", SCORES, "image")],
        "publish_lora/robin",
        ("robin/lora/images",),
        (FINALISTS,),
    ),
}


@pytest.fixture(scope="module")
def server() -> Iterator[StageServer]:
    server = StageServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def undisturbed(finished: Path) -> dict[str, str]:
    return snapshot(finished)


@pytest.fixture
def place(finished: Path, tmp_path: Path, server: StageServer) -> Place:
    folder = tmp_path / "project"
    for name in ("config", "data", "models", "results"):
        shutil.copytree(finished / name, folder / name, copy_function=os.link if name == "models" else shutil.copy2)
    return Place(folder, commands(finished), server)


def computed(log: str) -> int:
    work = read_work(log)
    assert work is not None, log
    return sum(work.computed.values())


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_damage_is_found_and_made_again(
    case: Case, damage: Callable[[bytes], bytes], place: Place, undisturbed: dict[str, str]
) -> None:
    paths = case.find(place)
    for path in paths:
        path.write_bytes(damage(path.read_bytes()))
    remove(place.folder, *case.lost)
    if case.makers:
        code, log = place.run(case.reader)
        errors = [line for line in log.splitlines() if line.startswith("error: ")]
        assert code == 75 and len(errors) == 1 and "Traceback" not in log
        assert "damaged or missing" in errors[0] and paths[-1].name in errors[0] and not paths[-1].exists()
        assert case.reader != TRAIN or not place.records()
        to_run = place.missing()
        assert {*case.makers, case.reader} <= set(to_run)
        counted = case.makers
    else:
        to_run = [job for job in place.commands if job.startswith(case.reader.partition("{")[0])]
        counted = tuple(to_run)
    runs = {job: place.run(job) for job in to_run}
    assert all(code == 0 for code, _ in runs.values()), runs
    assert sum(computed(runs[job][1]) for job in counted) == case.computed
    if paths == [place.by_product(4)]:
        place.run(TRAIN)
    assert difference(undisturbed, snapshot(place.folder)) == []


def test_drawn_pictures_of_the_class_are_restored_and_drawn_again(finished_else: Path, tmp_path: Path) -> None:
    project = moved(finished_else, tmp_path / "project")
    before = snapshot(project.folder)
    store, target = Store(project.folder / "results/.store"), "results/robin/encoded/main/main.parquet"
    picture = project.folder / "results/robin/regularisation/drawn/0000.png"
    sha256 = sha256_of_file(picture)
    assert store.holds(sha256)

    def encode_again() -> Run:
        picture.write_bytes(DAMAGE["truncated"](picture.read_bytes()))
        remove(project.folder, ".store/items/latents", "robin/encoded")
        return project.run(target)

    restored = encode_again()
    assert restored.code == 0, restored.text
    assert restored.jobs == {"encode_samples/robin/main/main"} and sha256_of_file(picture) == sha256
    store.blob_path(sha256).write_bytes(b"damaged")
    run = encode_again()
    assert run.code != 0 and "Run the same command again" in run.text and "Traceback" not in run.text
    healed = project.succeed(target)
    assert healed.jobs == {"draw_class_images/robin", "encode_samples/robin/main/main"}
    assert healed.computed["generated-images"] == 1
    assert difference(before, snapshot(project.folder)) == []


def test_snakemake_heals_damaged_latents_with_the_same_command(project: Project) -> None:
    before = snapshot(project.folder)
    row = read_rows(project.folder / "results/robin/encoded/main/main.parquet", ENCODED)[0]
    store = Store(project.folder / "results/.store")
    store.blob_path(row["latents_sha256"]).write_bytes(b"damaged")
    remove(project.folder, ".store/trainings", "robin/train")
    for step in ("000002", "000004"):
        assert f"robin/train/main/main/step-{step}.safetensors" in before
        store.blob_path(before[f"robin/train/main/main/step-{step}.safetensors"]).unlink()
    target = "results/robin/train/main/main/steps.json"
    run = project.run(target)
    assert run.code != 0 and "Run the same command again" in run.text and "Traceback" not in run.text
    healed = project.succeed(target)
    assert healed.jobs == {"encode_samples/robin/main/main", "train_lora/robin/main/main"}
    assert healed.computed == {"latents": 1, "training-steps": 4}
    assert difference(before, snapshot(project.folder)) == []
