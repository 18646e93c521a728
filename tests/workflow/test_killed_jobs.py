"""A job of any stage killed at any moment, then the same command: the same bytes, and what was paid for is not paid again.

The moments are drawn at random among a job's changes of the disk (see stage_server.py); LIKENESS_TEST_SEED draws others.
"""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.workflow.faults import Command, StageServer, commands, difference, remove, snapshot
from tests.workflow.project import read_work

from likeness.packs import read_packs, records_of
from likeness.photos.index import STAGE as PACKED
from likeness.store import Store, sha256_of_file
from likeness.training.records import TrainingFolder
from likeness.training.train import STEPS

pytestmark = pytest.mark.slow

SEED = os.environ.get("LIKENESS_TEST_SEED", "1")
MOMENTS = 3

BY_PRODUCTS = {
    "index_photos/robin/0": (),
    "merge_photos/robin/photos": (),
    "detect_faces/robin/0": (),
    "merge_faces/robin": ("robin/images/crops",),
    "make_masks/robin/0": (),
    "merge_masks/robin": ("robin/images/masks",),
    "measure_quality/robin/0": (),
    "merge_quality/robin": (),
    "write_captions/robin/0": (),
    "merge_captions/robin": ("robin/captions.csv",),
    "decide_phases/robin": ("robin/phases",),
    "encode_samples/robin/main/main": (),
    "train_lora/robin/main/main": ("robin/train/main/main",),
    "score_base/robin": ("robin/evaluation/base",),
    "score_checkpoints/robin/main/main": ("robin/evaluation/main",),
    "score_finalists/robin": ("robin/evaluation/report-half",),
    "choose_checkpoint/robin": (),
    "publish_lora/robin": ("robin/lora",),
    "write_config/robin": (),
    "write_curation": (),
    "write_report": (),
}
"""One job of every rule of `finished`, and what it writes below results without declaring it."""

MORE_BY_PRODUCTS = {
    "index_regularisation/robin": (),
    "draw_class_images/robin": (),
    "encode_samples/robin/main/main": (),
    "train_lora/robin/main/main": ("robin/train/main/main",),
    "export_dataset/robin/main/simpletuner": ("robin/exports",),
    "make_surgery/robin/small": ("robin/surgery/small.safetensors",),
    "score_checkpoints/robin/small/surgery": ("robin/evaluation/small",),
    "ablate_lora/robin/blocks": (),
    "measure_crosstalk/robin/early": ("robin/crosstalk/early",),
    "probe_blocks/robin/roles": (),
}
"""The rules that only `finished_else` runs, and those that read what they make."""

SETTLED_BY_LOSSES = {"refine_phase/robin/fine": (), "encode_samples/robin/main/fine": ()}
"""The rule that only `finished_with_losses` runs, and the first that reads what it makes."""


@dataclass
class Stage:
    """One job in a copy of the finished project: put back to before it ran, run, killed."""

    folder: Path
    finished: Path
    job: str
    by_products: Sequence[str]
    command: Command
    server: StageServer

    def reset(self, made: dict[str, set[str]]) -> None:
        """Put everything back as it was before this job ran; `made` are the items that it makes, by stage."""
        remove(self.folder, "")
        shutil.copytree(self.finished / "results", self.folder / "results")
        self.remove_outputs()
        for path, packed in self.packs().items():
            if packed & made.get(path.parent.name, set()):
                path.unlink()
        for stage, keys in made.items():
            for key in keys if stage != PACKED else ():
                item = self.store.load(stage, key)
                self.store.item_path(stage, key).unlink()
                for sha256 in item.files.values() if item else ():
                    self.store.blob_path(sha256).unlink(missing_ok=True)

    def remove_outputs(self) -> None:
        """Remove what the job declares, its by-products, and a training with its checkpoints."""
        remove(self.folder, *(output.removeprefix("results/") for output in self.command.outputs))
        remove(self.folder, *self.by_products)
        if self.job.startswith("train_lora"):
            for path in (self.store.root / "trainings").glob("*/*"):
                path.unlink()
            for path in (self.finished / "results/robin/train/main/main").glob("*.safetensors"):
                self.store.blob_path(sha256_of_file(path)).unlink()

    @property
    def store(self) -> Store:
        return Store(self.folder / "results" / ".store")

    def items(self) -> dict[str, set[str]]:
        """Keys of all whole items of the store, by stage."""
        found: dict[str, set[str]] = {}
        for path in (self.store.root / "items").rglob("*.json"):
            stage = path.parts[-3]
            if not path.name.startswith(".") and self.store.load(stage, path.stem):
                found.setdefault(stage, set()).add(path.stem)
        for path, keys in self.packs().items():
            found.setdefault(path.parent.name, set()).update(keys)
        return found

    def packs(self) -> dict[Path, set[str]]:
        """The keys that each pack of the store holds."""
        folder = self.store.root / "packs" / PACKED
        return {path: {key for key, _ in records_of({path: data})} for path, data in read_packs(folder).items()}

    def saved_step(self) -> int:
        """The last training step whose state is saved."""
        folders = list((self.store.root / "trainings").iterdir()) if self.job.startswith("train_lora") else []
        steps = [step for folder in folders for step in TrainingFolder(folder, self.store).records()]
        return max(steps, default=0)

    def log(self) -> str:
        return (self.folder / self.command.log).read_text(errors="replace")

    def run(self) -> tuple[Counter[str], int]:
        """Run to the end; items and steps computed, by stage, and how often the disk was changed."""
        ended = self.server.run(self.command, self.folder)
        assert ended.code == 0, self.log()
        work = read_work(self.log())
        assert work is not None
        return Counter({stage: count for stage, count in work.computed.items() if count}), ended.changes


@pytest.fixture(scope="module")
def server() -> Iterator[StageServer]:
    server = StageServer()
    yield server
    server.close()


def copy_of(finished: Path, folder: Path, job: str, by_products: Sequence[str], server: StageServer) -> Stage:
    """One job of a finished project in a copy of it."""
    for name in ("config", "data", "models", "results"):
        shutil.copytree(finished / name, folder / name, copy_function=os.link if name == "models" else shutil.copy2)
    return Stage(folder, finished, job, by_products, commands(finished)[job], server)


def rules(jobs: Iterable[str]) -> set[str]:
    return {job.partition("/")[0] for job in jobs}


def test_every_rule_is_killed(finished: Path, finished_else: Path, finished_with_losses: Path) -> None:
    assert rules(commands(finished)) == rules(BY_PRODUCTS)
    new = rules(commands(finished_with_losses)) - rules(BY_PRODUCTS) - rules(MORE_BY_PRODUCTS)
    assert new == {"refine_phase"} and new < rules(SETTLED_BY_LOSSES)
    assert rules(commands(finished_else)) == rules(BY_PRODUCTS) | rules(MORE_BY_PRODUCTS)


@pytest.mark.parametrize("job", BY_PRODUCTS)
def test_a_killed_job_goes_on_to_the_same_bytes(finished: Path, tmp_path: Path, server: StageServer, job: str) -> None:
    kill_and_compare(copy_of(finished, tmp_path / "project", job, BY_PRODUCTS[job], server))


@pytest.mark.parametrize("job", MORE_BY_PRODUCTS)
def test_a_killed_job_of_another_stage_goes_on_to_the_same_bytes(
    finished_else: Path, tmp_path: Path, server: StageServer, job: str
) -> None:
    kill_and_compare(copy_of(finished_else, tmp_path / "project", job, MORE_BY_PRODUCTS[job], server))


@pytest.mark.parametrize("job", SETTLED_BY_LOSSES)
def test_a_killed_job_of_a_phase_that_losses_settle_goes_on_to_the_same_bytes(
    finished_with_losses: Path, tmp_path: Path, server: StageServer, job: str
) -> None:
    kill_and_compare(copy_of(finished_with_losses, tmp_path / "project", job, SETTLED_BY_LOSSES[job], server))


def kill_and_compare(stage: Stage) -> None:
    """Run a job once to learn what it makes, then kill it at random moments and run it to the end each time."""
    undisturbed = snapshot(stage.finished)
    for name in ("items", "packs"):
        shutil.rmtree(stage.store.root / name)
    stage.remove_outputs()
    whole, changes = stage.run()
    made = stage.items()
    draw = random.Random(f"{SEED} {stage.job}")
    for _ in range(MOMENTS):
        code = 0
        while code != -9:
            stage.reset(made)
            moment = draw.randint(1, changes)
            ended = stage.server.run(stage.command, stage.folder, kill_at=moment)
            code, changes = ended.code, ended.changes or changes
            assert code in (0, -9), stage.log()
        kept = Counter({name: len(keys & made.get(name, set())) for name, keys in stage.items().items()})
        saved_step = stage.saved_step()
        computed, _ = stage.run()
        print(f"{stage.job}: killed at change {moment}; kept {dict(+kept)}, step {saved_step}; then {dict(computed)}")
        assert difference(undisturbed, snapshot(stage.folder)) == []
        if saved_step:
            kept[STEPS] = saved_step
        assert computed + kept == whole
