"""What losses are said to do, in the drawn world where the truth is known, each over three training seeds.

One person before one background, with captions that do not name it, as in the tests of surgery. Every claim compares two
trainings of equal steps and seed, measured on equal prompts and noise, and is made of the pairs of all seeds; numbers and
their spread are printed, and written down in docs/training.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.miniature.test_surgery import CAPTION, COUNT, HELD_OUT, LEAKED, PHOTO_PX, TRAINING, World, png

from likeness.config.training import EncodeStage, TrainingSettings, TrainStage
from likeness.evaluation.score import BASE_ENTRY, Entry, Workplace, entries_of_steps, score_base
from likeness.miniature.world import render, sample_identities, sample_scenes
from likeness.store import sha256_of_file
from likeness.tables import HOLDOUT, MANIFEST, PHOTOS, SAMPLE_FACES, write_table
from likeness.training.encode import encode_samples
from likeness.training.train import train_lora

pytestmark = [pytest.mark.long, pytest.mark.timeout(3000)]
SEEDS = (42, 43, 44)
IMAGES = 8
"""Images a prompt."""
MASKED = {"masked_loss": {"kind": "person", "unmasked_weight": 0.0}}


class Claims(World):
    """The surgery tests' world, with true faces and masks, and trainings told apart by their settings."""

    def trained(self, name: str, seed: int, **changes: Any) -> Entry:
        """The last checkpoint of a training."""
        identity = {"model": {"source": str(self.miniature / "pack" / "pack" / "recogniser.onnx")}}
        losses = {
            key: (identity | value if key == "identity" else value) for key, value in changes.pop("losses", {}).items()
        }
        settings = TrainingSettings.model_validate(TRAINING | {"seed": seed, "losses": losses} | changes)
        encode = EncodeStage(
            base_model=self.base_model,
            buckets=(settings.buckets,),
            mask_kind=settings.masked_loss.kind,
            unmasked_weights=(settings.masked_loss.unmasked_weight,),
            class_captions=settings.losses.output_preservation is not None,
            trigger="r0bin",
            class_word="person",
        )
        folder, label = self.folder / "train" / f"{name}-{seed}", f"{name}-{seed}"
        encoded, manifest = self.folder / f"{label}.encoded.parquet", self.folder / "whole.parquet"
        tables = (manifest, self.folder / "photos.parquet", self.store, encoded, None, [self.folder / "faces.parquet"])
        encode_samples(encode, *tables)
        stage = TrainStage(training=settings, base_model=self.base_model, init="scratch")
        train_lora(stage, manifest, encoded, None, self.store, folder)
        return entries_of_steps(label, "main", folder / "steps.json", self.store)[-1]

    def workplace(self) -> Workplace:
        """More images than surgery needs: what is compared is small beside the spread of one image."""
        found = super().workplace()
        evaluation = found.stage.evaluation.model_copy(update={"seeds": tuple(range(1, IMAGES + 1))})
        found.stage = found.stage.model_copy(update={"evaluation": evaluation})
        return found

    def drift(self, entry: Entry) -> float:
        """Mean absolute difference, 0..1, to the base's images of prompts without the trigger."""
        workplace = self.workplace()
        points = [replace(point, prompt=point.prompt.replace("r0bin ", "a ")) for point in workplace.half("select")]
        ours, theirs = (
            [self.pixels(shot.sha256) for shot in workplace.draw([one], points)] for one in (entry, BASE_ENTRY)
        )
        return float(np.mean([np.abs(one - other).mean() for one, other in zip(ours, theirs, strict=True)]))

    def pixels(self, image_sha256: str) -> np.ndarray:
        import io

        from PIL import Image

        encoded = self.store.blob_path(image_sha256).read_bytes()
        return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"), float) / 255


@pytest.fixture(scope="module")
def world(miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> Claims:
    """Photos of one person before one background, with true masks and landmarks, and the base scored."""
    found = Claims(tmp_path_factory.mktemp("claims"), miniature)
    rng = np.random.default_rng(7)
    identity, scenes = sample_identities(1, rng), sample_scenes(COUNT, rng).with_background(LEAKED)
    drawn = render(np.repeat(identity, COUNT, axis=0), scenes, PHOTO_PX, PHOTO_PX)
    photos, rows, faces = [], [], []
    for at in range(COUNT):
        path = found.folder / f"{at:02d}.png"
        path.write_bytes(png((drawn.images_NHWC[at] * 255).round().astype(np.uint8)))
        sha256, size = sha256_of_file(path), {"width_px": PHOTO_PX, "height_px": PHOTO_PX}
        photos.append(
            {"id": path.stem, "path": str(path), "repeats": 1, "sha256": sha256, "status": "ok", "reason": ""} | size
        )
        mask = found.store.save_blob(png(drawn.person_NHW[at].astype(np.uint8) * 255))
        sample = {"sample_id": f"sample-{at}", "image_sha256": sha256, "mask_sha256": mask, "reference_sha256s": []}
        rows.append(sample | {"caption": CAPTION, "repeats": 1})
        shown = {"box": drawn.boxes_N4[at].tolist(), "landmarks": drawn.landmarks_N52[at].flatten().tolist()}
        faces.append({"image_sha256": sha256} | shown)
    write_table(found.folder / "photos.parquet", PHOTOS, photos)
    write_table(found.folder / "faces.parquet", SAMPLE_FACES, faces)
    write_table(found.folder / "holdout.parquet", HOLDOUT, [row | {"use": "held_out"} for row in rows[:HELD_OUT]])
    write_table(found.folder / "whole.parquet", MANIFEST, rows[HELD_OUT:])
    score_base(found.workplace(), found.base_folder)
    return found


def compared(claim: str, before: Sequence[float], after: Sequence[float]) -> Mapping[str, float]:
    """Print a claim's numbers: means, and the spread (standard deviation) over training seeds of each and of the difference."""
    differences = np.subtract(after, before)
    print(
        f"\n{claim}: without {np.mean(before):.3f} ± {np.std(before, ddof=1):.3f}, with {np.mean(after):.3f} ± "
        f"{np.std(after, ddof=1):.3f}, difference {differences.mean():+.3f} ± {differences.std(ddof=1):.3f} "
        f"({', '.join(f'{one:+.3f}' for one in differences)})"
    )
    return {
        "difference": float(differences.mean()),
        "largest": float(differences.max()),
        "least": float(differences.min()),
    }


def test_masked_loss_lowers_background_leakage(world: Claims) -> None:
    whole = [world.measured(world.trained("whole", seed)) for seed in SEEDS]
    masked = [world.measured(world.trained("masked", seed, **MASKED)) for seed in SEEDS]
    found = compared("leakage of the background", [one[1] for one in whole], [one[1] for one in masked])
    assert found["largest"] < 0


def test_identity_loss_raises_identity_at_equal_steps(world: Claims) -> None:
    plain = [world.measured(world.trained("masked", seed, **MASKED)) for seed in SEEDS]
    losses = {"identity": {"weight": 0.5, "sigma_max": 0.8, "min_similarity": -1.0}}
    with_loss = [world.measured(world.trained("identity", seed, **MASKED, losses=losses)) for seed in SEEDS]
    found = compared("identity", [one[0] for one in plain], [one[0] for one in with_loss])
    assert found["least"] > 0


def test_output_preservation_lowers_drift(world: Claims) -> None:
    plain = [world.drift(world.trained("masked", seed, **MASKED)) for seed in SEEDS]
    losses = {"output_preservation": {}}
    kept = [world.drift(world.trained("kept", seed, **MASKED, losses=losses)) for seed in SEEDS]
    found = compared("drift without the trigger", plain, kept)
    assert found["largest"] < 0
