"""Surgery on LoRAs that truly learned, in the drawn world: what subtraction, truncation and ablation are said to do.

One person before one background, with captions that do not name it, so that a LoRA of whole pictures learns the
background as well; another LoRA is trained on the inverted mask and learns nothing else. Background colours are read
from the drawn images themselves.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from likeness.captions.facts import BACKGROUND_COLOURS
from likeness.config.base import ModelSource
from likeness.config.evaluation import ChoiceSettings, ChoiceStage, EvaluationSettings, Prompt, ScoreStage
from likeness.config.surgery import Ablation, Surgery, SurgeryStage
from likeness.config.training import EncodeStage, TrainingSettings, TrainStage
from likeness.evaluation.ablate import ablate_lora
from likeness.evaluation.blocks import choose_blocks
from likeness.evaluation.draw import LoraFile
from likeness.evaluation.parents import Candidates, Found, find_parents
from likeness.evaluation.score import Entry, Workplace, entries_of_steps, score_base
from likeness.evaluation.scores import Scores
from likeness.evaluation.surgery import make_surgery
from likeness.lora.adapter import Lora, LoraModule
from likeness.lora.files import read_lora, save_lora
from likeness.miniature.world import render, sample_identities, sample_scenes
from likeness.store import Store, sha256_of_file
from likeness.tables import HOLDOUT, MANIFEST, PHOTOS, read_rows, write_table
from likeness.training.encode import encode_samples
from likeness.training.train import train_lora

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PHOTO_PX, COUNT, HELD_OUT = 128, 12, 3
CORNER_PX = 3
LEAKED = "brown"
COLOURS = ("red", "green", "blue", "white", "purple")
CAPTION = "r0bin person, close portrait, facing the camera, even light"
PROMPTS = {
    colour: Prompt(
        text=f"{{trigger}} {{class}}, close portrait, facing the camera, even light, {colour} background",
        split="select",
    )
    for colour in COLOURS
}
TRAINING = {
    "rank": 16,
    "init": "gaussian",
    "batch_size": 8,
    "learning_rate": 8e-3,
    "steps": 150,
    "save_every": 150,
    "precision": "float32",
    "schedule": {"name": "cosine", "warmup_steps": 10},
    "sigma": {"bias": 0.5},
    "buckets": {"resolution_px": 16, "bucket_step_px": 2, "max_aspect": 1.0, "reference_resolution_px": 16},
}


@dataclass
class World:
    """One person's photos and what was trained on them; everything below one folder."""

    folder: Path
    miniature: Path

    @property
    def store(self) -> Store:
        return Store(self.folder / "store")

    @property
    def base_model(self) -> ModelSource:
        return ModelSource(source=str(self.miniature / "base"))

    @property
    def choice(self) -> ChoiceStage:
        return ChoiceStage(choice=ChoiceSettings(), finalists=1, recipe="character")

    @property
    def base_folder(self) -> Path:
        return self.folder / "robin" / "evaluation" / "base"

    def workplace(self) -> Workplace:
        stage = ScoreStage(
            evaluation=EvaluationSettings(
                recogniser=ModelSource(source=str(self.miniature / "pack" / "evaluation_pack")),
                detection_size_px=96,
                seeds=(1, 2, 3),
                sampling_steps=12,
                guidance_scale=1.0,
                width_px=16,
                height_px=16,
                enlarge_to_px=256,
                batch_size=10,
                strengths=(1.0,),
                precision="float32",
            ),
            prompts=PROMPTS,
            recipe="character",
            kind="photos",
            trigger="r0bin",
            class_word="person",
            base_model=self.base_model,
            buckets=TrainingSettings.model_validate(TRAINING).buckets,
        )
        manifests = [self.folder / "whole.parquet"]
        return Workplace(stage, self.folder / "holdout.parquet", manifests, self.folder / "photos.parquet", self.store)

    def train(self, name: str, **changes: Any) -> Path:
        """Train on all photos; returns steps.json."""
        settings = TrainingSettings.model_validate(TRAINING | changes)
        encode = EncodeStage(
            base_model=self.base_model,
            buckets=(settings.buckets,),
            mask_kind=settings.masked_loss.kind,
            unmasked_weights=(settings.masked_loss.unmasked_weight,),
        )
        encoded, path = self.folder / f"{name}.encoded.parquet", self.folder / "whole.parquet"
        encode_samples(encode, path, self.folder / "photos.parquet", self.store, encoded)
        folder = self.folder / "robin" / "train" / name / "main"
        stage = TrainStage(training=settings, base_model=self.base_model, init="scratch")
        train_lora(stage, path, encoded, None, self.store, folder)
        return folder / "steps.json"

    def operate(self, name: str, sources: Sequence[Path], **entry: Any) -> Entry:
        """Make a candidate by surgery, as the program does."""
        surgery = Surgery.model_validate(entry)
        stage = SurgeryStage(surgery=surgery, base_model=self.base_model, choice=self.choice)
        parents = find_parents(surgery.parents, list(sources), Candidates([], {}), self.choice, self.store)
        record = self.folder / "robin" / "surgery" / f"{name}.json"
        make_surgery(stage, parents, self.store, record)
        return entries_of_steps(name, "surgery", record, self.store)[0]

    def measured(self, entry: Entry) -> tuple[float, float]:
        """Mean csim, and mean absolute difference of the upper corners to the prompted colour, 0..1."""
        workplace = self.workplace()
        points = workplace.half("select")
        shots = workplace.draw([entry], points)
        scores = Scores(workplace.rows("robin", shots, {}, []))
        csim = scores.mean(entry.checkpoint, "select", "csim")
        assert csim is not None
        return csim, float(np.mean([self.leakage(shot.sha256, shot.request.point.prompt_id) for shot in shots]))

    def leakage(self, image_sha256: str, colour: str) -> float:
        encoded = self.store.blob_path(image_sha256).read_bytes()
        image_HWC = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"), float) / 255
        corners = np.stack([image_HWC[:CORNER_PX, :CORNER_PX], image_HWC[:CORNER_PX, -CORNER_PX:]])
        return float(np.abs(corners - BACKGROUND_COLOURS[colour]).mean())


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def world(miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Photos of one person before one background, with true masks, and the base scored."""
    found = World(tmp_path_factory.mktemp("surgery"), miniature)
    rng = np.random.default_rng(7)
    identity, scenes = sample_identities(1, rng), sample_scenes(COUNT, rng).with_background(LEAKED)
    drawn = render(np.repeat(identity, COUNT, axis=0), scenes, PHOTO_PX, PHOTO_PX)
    photos, rows = [], []
    for at in range(COUNT):
        path = found.folder / f"{at:02d}.png"
        path.write_bytes(png((drawn.images_NHWC[at] * 255).round().astype(np.uint8)))
        sha256 = sha256_of_file(path)
        size = {"width_px": PHOTO_PX, "height_px": PHOTO_PX}
        photos.append(
            {"id": path.stem, "path": str(path), "repeats": 1, "sha256": sha256, "status": "ok", "reason": ""} | size
        )
        person = found.store.save_blob(png(drawn.person_NHW[at].astype(np.uint8) * 255))
        sample = {"sample_id": f"robin-{at}", "image_sha256": sha256, "mask_sha256": person}
        rows.append(sample | {"reference_sha256s": [], "caption": CAPTION, "repeats": 1})
    write_table(found.folder / "photos.parquet", PHOTOS, photos)
    held_out = [row | {"use": "held_out"} for row in rows[:HELD_OUT]]
    write_table(found.folder / "holdout.parquet", HOLDOUT, held_out)
    write_table(found.folder / "whole.parquet", MANIFEST, rows[HELD_OUT:])
    score_base(found.workplace(), found.base_folder)
    return found


@pytest.fixture(scope="module")
def whole(world: World) -> Path:
    """A LoRA of whole pictures: person and background."""
    return world.train("whole")


def test_subtracting_the_background_lowers_its_leakage(world: World, whole: Path) -> None:
    """At every further step of the sweep; at α = 0.5 by a tenth or more with the identity kept (measured: 18 %)."""
    inverted = {"kind": "person", "inverted": True, "unmasked_weight": 0.0}
    background = world.train("background", masked_loss=inverted)
    entry = {"method": "subtract", "of": "whole", "background": "background"}
    found = {
        alpha: world.measured(world.operate(f"minus-{round(100 * alpha)}", [whole, background], alpha=alpha, **entry))
        for alpha in (0.0, 0.25, 0.5, 0.75, 1.0)
    }
    csims, leaked = zip(*found.values(), strict=True)
    assert list(leaked) == sorted(leaked, reverse=True), leaked
    assert leaked[2] <= 0.9 * leaked[0] and csims[2] >= 0.8 * csims[0], found
    assert leaked[4] <= 0.7 * leaked[0], found


def test_truncation_to_rank_8_keeps_the_identity(world: World, whole: Path) -> None:
    full = world.measured(entries_of_steps("whole", "main", whole, world.store)[-1])
    cut = world.measured(world.operate("rank-8", [whole], method="resize", of="whole", rank=8))
    assert full[0] > 0.4
    assert cut[0] == pytest.approx(full[0], abs=0.02)


def test_a_lora_trained_on_single_block_2_ranks_it_first_out_and_in(world: World) -> None:
    """The trained LoRA stands in a file that adapts every block, the others by nothing, so that all are truly drawn."""
    steps = world.train("narrow", targets="single_all@single=2")
    workplace = world.workplace()
    trained = read_lora(entries_of_steps("narrow", "main", steps, world.store)[-1].lora.path)  # type: ignore[union-attr]
    assert len(trained.modules) == 2
    path = world.folder / "everywhere.safetensors"
    save_lora(path, widened(trained, workplace.drawer.layout), {})
    parent = Found(LoraFile(path, sha256_of_file(path)), None, path.name)
    ablation = Ablation.model_validate({"of": str(path), "weights": [0.0, 1.0]})
    output = world.folder / "robin" / "ablation" / "narrow.parquet"
    rows = ablate_lora(workplace, ablation, parent, world.base_folder, "robin", output)
    for mode, weight in (("knock-out", 0.0), ("knock-in", 1.0)):
        for metric in ("csim", "image_change"):
            family = [row for row in rows if (row["mode"], row["weight"], row["metric"]) == (mode, weight, metric)]
            first = next(row for row in family if row["rank"] == 1)
            assert first["block"] == "single.2", (mode, weight, metric)
            assert all(abs(row["difference"]) < 1e-3 for row in family if row["block"] != "single.2")
            assert (
                (first["difference"] < -0.1) if (mode, metric) == ("knock-out", "csim") else first["difference"] > 0.01
            )
    assert choose_blocks(rows, "image_change", 8) == ["single.2"]
    assert read_rows(output)


def widened(lora: Lora, layout: Any) -> Lora:
    """The same change in a file with modules in every block."""
    import torch

    from likeness.klein.family import linear_shapes
    from likeness.klein.targets import matched_names, target_regex

    shapes, modules = linear_shapes(layout), dict(lora.modules)
    for name in matched_names(target_regex("all_blocks", layout), layout):
        if name not in modules:
            outputs, inputs = shapes[name]
            modules[name] = LoraModule(torch.randn(4, inputs), torch.zeros(outputs, 4), 1.0)
    return Lora(dict(sorted(modules.items())))
