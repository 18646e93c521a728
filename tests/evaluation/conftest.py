"""A tiny project: a random base model, photos or pairs with their tables, and LoRA checkpoints with known effects."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.tiny import save_tiny

from likeness.config.base import ModelSource
from likeness.config.evaluation import ChoiceSettings, ChoiceStage, EvaluationSettings, Prompt, PublishStage, ScoreStage
from likeness.config.training import BucketSettings
from likeness.faces.shipped import FACES
from likeness.klein.family import layout_of, linear_shapes
from likeness.klein.targets import matched_names, target_regex
from likeness.lora.files import write_lora
from likeness.store import Store, sha256_of_file
from likeness.tables import DECISIONS, HOLDOUT, MANIFEST, PAIRS, PHOTOS, write_table

PROMPTS = {
    "garden": Prompt(text="{trigger} {class} in a garden", split="select"),
    "office": Prompt(text="{trigger} {class} in an office", split="report"),
    "street": Prompt(text="{trigger} {class} in a street", split="select"),
    "night": Prompt(text="{trigger} {class} at night", split="report"),
    "someone": Prompt(text="a {class} in a garden", split="select", kind="bleed"),
    "boats": Prompt(text="boats in a harbour", split="report", kind="neutral"),
}


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("evaluation") / "base"
    save_tiny(folder, seed=5)
    return folder


@pytest.fixture
def toy_detector(monkeypatch):
    monkeypatch.setitem(FACES, "toy", "tests.evaluation.toy:ToyDetector")


def lora_file(path: Path, base: Path, seed: int, strength: float) -> str:
    """Write a LoRA of rank 2 over all blocks with random factors; returns its sha256."""
    layout = layout_of(json.loads((base / "transformer" / "config.json").read_text()))
    shapes, names = linear_shapes(layout), matched_names(target_regex("all_blocks", layout), layout)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name in names:
        outputs, inputs = shapes[name]
        tensors[f"{name}.lora_A.weight"] = torch.randn(2, inputs, generator=generator) / inputs**0.5
        tensors[f"{name}.lora_B.weight"] = torch.randn(outputs, 2, generator=generator) * strength
    return write_lora(path, tensors, 2, 4.0, target_regex("all_blocks", layout), {"likeness_test": "1"})


@dataclass
class Project:
    """Paths of one subject's results, and the slices of the programs."""

    folder: Path
    base: Path
    kind: str = "photos"
    stage: ScoreStage = field(init=False)
    choice: ChoiceStage = field(init=False)

    def __post_init__(self) -> None:
        recipe = "edit" if self.kind == "pairs" else "character"
        self.stage = ScoreStage(
            evaluation=EvaluationSettings(
                recogniser_backend="toy",
                recogniser=ModelSource(source="toy"),
                sampling_steps=2,
                width_px=32,
                height_px=32,
                enlarge_to_px=48,
                batch_size=3,
                finalists=1,
                strengths=(0.5, 1.0),
                precision="float32",
            ),
            prompts={} if self.kind == "pairs" else PROMPTS,
            recipe=recipe,
            kind=self.kind,
            trigger="j4ne",
            class_word="person",
            base_model=ModelSource(source=str(self.base)),
            buckets=BucketSettings(resolution_px=32, bucket_step_px=8),
        )
        self.choice = ChoiceStage(choice=ChoiceSettings(max_bleed=None, min_diversity=None), finalists=1, recipe=recipe)

    @property
    def results(self) -> Path:
        return self.folder / "results" / "jane"

    @property
    def images(self) -> Path:
        return self.results / f"{self.kind}.parquet"

    @property
    def holdout(self) -> Path:
        return self.results / "phases" / "holdout.parquet"

    @property
    def manifests(self) -> list[Path]:
        return [self.results / "phases" / "main.parquet"]

    @property
    def steps(self) -> Path:
        return self.results / "train" / "main" / "main" / "steps.json"

    @property
    def publish_stage(self) -> PublishStage:
        return PublishStage(
            recipe=self.stage.recipe,
            trigger="j4ne",
            class_word="person",
            base_model=self.stage.base_model,
            training={"rank": 2, "seed": 1},
        )

    def store(self) -> Store:
        return Store(self.folder / "results" / ".store")

    def evaluation(self, *parts: str) -> Path:
        return self.results.joinpath("evaluation", *parts)


def write_photo(path: Path, seed: int, size_px: int = 48) -> str:
    """Smooth colours with a little noise; returns the file's sha256."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(40, 255, (4, 4, 3), np.uint8))
    pixels = np.asarray(coarse.resize((size_px, size_px), Image.Resampling.BICUBIC)).astype(int)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(pixels + generator.integers(-6, 6, pixels.shape), 0, 255).astype(np.uint8)).save(path)
    return sha256_of_file(path)


def write_steps(project: Project, strengths: dict[int, float]) -> None:
    """Write checkpoints and their steps.json; `strengths` maps a step to the size of its LoRA."""
    listed = []
    for step, strength in strengths.items():
        name = f"step-{step:06d}.safetensors"
        sha256 = lora_file(project.steps.parent / name, project.base, 7, strength)
        listed.append({"step": step, "file": name, "sha256": sha256})
    project.steps.write_text(json.dumps(listed))


def write_decisions(project: Project) -> None:
    rows = [
        {"phase": "main", "id": f"photo-{at}", "kept": at < 4, "rule": "kept" if at < 4 else "sharpness", "reason": ""}
        for at in range(6)
    ]
    write_table(project.results / "phases" / "decisions.parquet", DECISIONS, rows)


@pytest.fixture
def project(tmp_path, tiny_folder, toy_detector) -> Project:
    """A character with 2 held-out and 4 training photos, and checkpoints of growing strength."""
    made = Project(tmp_path, tiny_folder)
    shas = [write_photo(tmp_path / "photos" / f"{at}.png", at % 3) for at in range(3)]
    shas += [write_photo(tmp_path / "photos" / f"{at}.png", 10 + at) for at in range(3, 6)]
    photos = [
        {
            "id": f"photo-{at}",
            "path": str(tmp_path / "photos" / f"{at}.png"),
            "repeats": 1,
            "sha256": sha256,
            "width_px": 48,
            "height_px": 48,
            "status": "ok",
            "reason": "",
        }
        for at, sha256 in enumerate(shas)
    ]
    write_table(made.images, PHOTOS, photos)
    rows = [
        {"sample_id": f"s{at}", "image_sha256": sha256, "reference_sha256s": [], "caption": "j4ne", "repeats": 1}
        for at, sha256 in enumerate(shas)
    ]
    write_table(made.holdout, HOLDOUT, [row | {"use": "held_out"} for row in rows[:2]])
    write_table(made.manifests[0], MANIFEST, rows[2:])
    write_steps(made, {250: 0.2, 500: 0.6, 750: 1.5})
    write_decisions(made)
    return made


@pytest.fixture
def edit_project(tmp_path, tiny_folder, toy_detector) -> Project:
    """An edit with 4 held-out pairs of 3 sources, one of them used twice."""
    made = Project(tmp_path, tiny_folder, "pairs")
    sources = [write_photo(tmp_path / "pairs" / f"{at}_start.png", 20 + at, 40) for at in range(3)]
    pairs, rows = [], []
    for at, source in enumerate([0, 1, 2, 2]):
        target = tmp_path / "pairs" / f"{at}_end.png"
        sha256 = write_photo(target, 30 + at, 40)
        pairs.append(
            {
                "id": f"pair-{at}",
                "source_path": str(tmp_path / "pairs" / f"{source}_start.png"),
                "target_path": str(target),
                "reference_paths": [],
                "repeats": 1,
                "sha256": sha256,
                "source_sha256": sources[source],
                "reference_sha256s": [],
                "width_px": 40,
                "height_px": 40,
                "source_width_px": 40,
                "source_height_px": 40,
                "status": "ok",
                "reason": "",
            }
        )
        rows.append(
            {
                "sample_id": f"s{at}",
                "image_sha256": sha256,
                "reference_sha256s": [sources[source]],
                "caption": f"smile {at}",
                "repeats": 1,
                "use": "held_out",
            }
        )
    write_table(made.images, PAIRS, pairs)
    write_table(made.holdout, HOLDOUT, rows)
    write_table(made.manifests[0], MANIFEST, [])
    write_steps(made, {10: 0.3, 20: 0.9})
    write_decisions(made)
    return made
