"""Trainings by other trainers: their files are found by their names, read in their formats, kept, and never made twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.exports.project import Project
from tests.tiny import save_tiny
from tests.training.stand_in import TRAINERS as STAND_INS

from likeness.config.exports import ExternalStage
from likeness.config.subject import HOSTED, TRAINERS
from likeness.errors import UserError
from likeness.exports.export import exporter_of
from likeness.klein.family import Layout, linear_shapes
from likeness.klein.load import BaseModel
from likeness.lora.adapter import Lora, LoraModule
from likeness.lora.files import read_lora, save_lora
from likeness.lora.names import names_of
from likeness.store import Store, sha256_of_file
from likeness.tables import LOG, read_rows
from likeness.training.external import loss_tag, rate_tag, train_external, work_lock

HOUSE = Path(__file__).resolve().parents[2]
STAND_IN = HOUSE / "tests" / "training" / "stand_in.py"
RANK, ALPHA = 4, 8.0
TAKES_NO_ALPHA = {"ai-toolkit", "diffusion-pipe", "diffsynth-studio"}
FUSES = {"ai-toolkit", "diffusion-pipe", "musubi-tuner"}
LOGS = {"simpletuner", "diffusion-pipe", "musubi-tuner", "diffsynth-studio"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    save_tiny(folder)
    return folder


@pytest.fixture(scope="module")
def source(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The LoRA that the stand-in learns."""
    torch.manual_seed(3)
    layout = BaseModel(str(base)).layout
    assert layout is not None
    modules = {
        name: LoraModule(torch.randn(RANK, inputs) / 8, torch.randn(outputs, RANK) / 8, 1.0)
        for name, (outputs, inputs) in linear_shapes(layout).items()
        if "blocks." in name
    }
    path = tmp_path_factory.mktemp("source") / "lora.safetensors"
    save_lora(path, Lora(modules), {})
    return path


class Bench:
    """A project with one photo of which another trainer trains a LoRA."""

    def __init__(self, root: Path, base: Path, source: Path) -> None:
        self.project = Project(root / "project").write_photo()
        self.base, self.source = base, source

    def stage(self, trainer: str, command: str | None = None, **more: Any) -> ExternalStage:
        values = {"rank": RANK, "alpha": ALPHA, "steps": 4, "save_every": 2, "gradient_accumulation": 1} | more
        environment = {"PYTHONPATH": f"{HOUSE}/scripts", "OMP_NUM_THREADS": "1"} | values.pop("environment", {})
        export = self.project.stage(trainer, values, base_model={"source": str(self.base)}, prompts=[])
        own = f"{sys.executable} {STAND_IN} {trainer} {self.source}"
        command_of = {"command": command or own, "environment": environment}
        return ExternalStage.model_validate(
            {"export": export.model_dump(), "command": command_of, "base_model": {"source": str(self.base)}}
        )

    def train(self, trainer: str, **more: Any) -> str:
        """Train, and say whether it was computed or reused."""
        project, store = self.project, Store(self.project.store.root)
        stage = self.stage(trainer, **more)
        train_external(stage, project.root / "manifest.parquet", project.images, store, self.out)
        assert store.computed["external"] + store.reused["external"] == 1
        return "computed" if store.computed["external"] else "reused"

    @property
    def out(self) -> Path:
        return self.project.root / "train"

    @property
    def work(self) -> list[Path]:
        return [path for path in (self.project.store.root / "external").iterdir() if path.is_dir()]

    @property
    def steps(self) -> list[dict[str, Any]]:
        return json.loads((self.out / "steps.json").read_text())


@pytest.fixture
def bench(tmp_path: Path, base: Path, source: Path) -> Bench:
    return Bench(tmp_path, base, source)


def test_a_base_model_beside_the_project_is_found_from_the_trainers_folder(
    bench: Bench, base: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(base.parent)
    bench.base = Path(base.name)
    read = "import json; print(json.load(open('config/config.json'))['pretrained_model_name_or_path'])"
    own = f"{sys.executable} {STAND_IN} simpletuner {source}"
    command = f'test -f "$({sys.executable} -c "{read}")/model_index.json" && {own}'
    assert bench.train("simpletuner", command=command) == "computed"
    assert [one["step"] for one in bench.steps][-1] == 4


def learned(source: Path, layout: Layout, trainer: str, part: float) -> dict[str, torch.Tensor]:
    """The change of every weight that a trainer means by the factors that it trained."""
    modules = dict(read_lora(source).modules)
    if trainer in FUSES:
        for own in names_of(layout).values():
            modules |= {name: modules[name]._replace(A_RI=modules[own[0]].A_RI) for name in own if name in modules}
    scale = part * (1.0 if trainer in TAKES_NO_ALPHA else ALPHA / RANK)
    return {name: scale * module.delta() for name, module in modules.items()}


def test_a_stand_in_for_every_trainer_that_runs() -> None:
    runnable = set(TRAINERS) - set(HOSTED)
    assert set(STAND_INS) == runnable
    assert all(bool(exporter_of(name).TRAINER.output) == (name in runnable) for name in TRAINERS)


@pytest.mark.parametrize("trainer", sorted(STAND_INS))
def test_checkpoints_of_each_trainer_mean_what_it_trained(bench: Bench, trainer: str) -> None:
    assert bench.train(trainer) == "computed"
    assert [entry["step"] for entry in bench.steps] == [2, 4]
    layout = BaseModel(str(bench.base)).layout
    assert layout is not None
    for entry, part in zip(bench.steps, (0.5, 1.0), strict=True):
        path = bench.out / entry["file"]
        assert sha256_of_file(path) == entry["sha256"]
        lora = read_lora(path)
        assert (lora.format, lora.metadata["trainer"]) == ("diffusers", trainer)
        expected = learned(bench.source, layout, trainer, part)
        assert set(lora.modules) == set(expected)
        for name, module in lora.modules.items():
            assert torch.allclose(module.delta(), expected[name], atol=1e-6), name
    log = read_rows(bench.out / "log.parquet", LOG)
    assert [row["step"] for row in log] == ([1, 2, 3, 4] if trainer in LOGS else [])
    assert all(row["loss"] == pytest.approx(1 / row["step"]) for row in log)
    assert bench.work == []


def test_micro_batches_become_optimizer_steps(bench: Bench) -> None:
    environment = {"STEPS": "8"}
    for trainer in ("diffsynth-studio", "onetrainer"):
        assert bench.train(trainer, gradient_accumulation=2, environment=environment) == "computed"
        assert [entry["step"] for entry in bench.steps] == [2, 4]


def test_what_is_finished_runs_nothing_and_its_files_come_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.train("musubi-tuner")
    before = {path.name: path.read_bytes() for path in bench.out.iterdir()}
    for path in bench.out.iterdir():
        path.unlink()
    (bench.out / "step-000009.safetensors").write_bytes(b"of another training")
    monkeypatch.setattr(subprocess, "run", None)
    assert bench.train("musubi-tuner") == "reused"
    assert {path.name: path.read_bytes() for path in bench.out.iterdir()} == before


def test_what_changes_the_training_trains_again_and_a_renamed_photo_does_not(bench: Bench) -> None:
    bench.train("ai-toolkit")
    project = bench.project
    (project.root / "photos/b.png").rename(project.root / "photos/renamed.png")
    from tests.exports.project import SMALL

    from likeness.config.photos import PhotoFolder, PhotoStage
    from likeness.photos.index import index_photos
    from likeness.tables import PHOTOS, write_table

    stage = PhotoStage(kind="photos", folders=[PhotoFolder(path=str(project.root / "photos"))], photo=SMALL)
    write_table(project.images, PHOTOS, index_photos(stage, 0, 1, project.store))
    assert bench.train("ai-toolkit") == "reused"
    assert bench.train("ai-toolkit", learning_rate=2e-4) == "computed"
    assert bench.train("ai-toolkit", environment={"OTHER": "1"}) == "computed"
    assert bench.train("ai-toolkit") == "reused"


def test_a_failed_trainer_is_named_and_goes_on_in_its_folder(bench: Bench) -> None:
    marker = bench.project.root / "failed"
    own = bench.stage("simpletuner").command.command
    command = f"if [ ! -e {marker} ]; then touch {marker}; FAIL_AFTER=1 {own}; fi; ls output/checkpoint-2; {own}"
    with pytest.raises(UserError, match=r"SimpleTuner ended with exit code 3; .* is kept"):
        bench.train("simpletuner", command=command)
    [folder] = bench.work
    assert (folder / "output/checkpoint-2/pytorch_lora_weights.safetensors").exists()
    assert not bench.out.exists()
    assert bench.train("simpletuner", command=command) == "computed"
    assert bench.work == []


def test_a_trainer_that_leaves_nothing_and_a_lora_of_another_model(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="OneTrainer ended well but left no LoRA file"):
        bench.train("onetrainer", command="true")
    other = tmp_path / "other.safetensors"
    name = "transformer_blocks.0.attn.to_q"
    save_lora(other, Lora({name: LoraModule(torch.ones(4, 7), torch.ones(9, 4), 1.0)}), {})
    command = f"{sys.executable} {STAND_IN} onetrainer {other}"
    with pytest.raises(UserError, match=r"OneTrainer's .* does not fit the base model"):
        bench.train("onetrainer", command=command)


def test_the_trainer_gets_its_own_environment(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our interpreter is not first on its PATH, and nothing leads its Python to our packages."""
    ours = str(Path(sys.executable).parent)
    monkeypatch.setenv("PATH", f"{ours}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("VIRTUAL_ENV", "/ours")
    seen = bench.project.root / "seen.txt"
    command = f"env > {seen}; {bench.stage('musubi-tuner').command.command}"
    bench.train("musubi-tuner", command=command, environment={"HUB": "/models"})
    variables = dict(line.split("=", 1) for line in seen.read_text().splitlines() if "=" in line)
    assert ours not in variables["PATH"].split(os.pathsep)
    assert "VIRTUAL_ENV" not in variables
    assert (variables["HUB"], variables["PYTHONPATH"]) == ("/models", f"{HOUSE}/scripts")


def test_the_lock_is_held_until_the_trainer_ends(tmp_path: Path) -> None:
    """A job may be killed and leave its trainer behind: another one waits for that."""
    path = tmp_path / "x.lock"
    with work_lock(path) as lock:
        orphan = subprocess.Popen(["sleep", "30"], pass_fds=(lock,))
    probe = ["flock", "--nonblock", str(path), "true"]
    try:
        assert subprocess.run(probe, check=False).returncode == 1
    finally:
        orphan.kill()
        orphan.wait()
    assert subprocess.run(probe, check=False).returncode == 0


@pytest.mark.parametrize(
    ("tags", "loss", "rate"),
    [
        (["train_loss", "learning_rate", "validation/loss"], "train_loss", "learning_rate"),
        (["loss/current", "loss/average", "lr/unet"], "loss/current", "lr/unet"),
        (["train/loss", "train/epoch_loss", "train/lr"], "train/loss", "train/lr"),
        (["loss/train_step", "smooth_loss/train_step", "lr/transformer"], "loss/train_step", "lr/transformer"),
        (["epoch"], None, None),
    ],
)
def test_tags_of_loss_and_rate(tags: list[str], loss: str | None, rate: str | None) -> None:
    assert (loss_tag(tags), rate_tag(tags)) == (loss, rate)
