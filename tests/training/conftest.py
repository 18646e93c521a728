"""A small world on disk for the training tests: a tiny base model, photos with masks, pairs, and their tables."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.tiny import save_tiny

from likeness.config.training import BucketSettings, EncodeStage, TrainingSettings, TrainStage
from likeness.store import Store, sha256_of_bytes, sha256_of_file
from likeness.tables import HOLDOUT, MANIFEST, PAIRS, PHOTOS, read_rows, write_table
from likeness.training.encode import encode_samples

BUCKETS = BucketSettings(resolution_px=32, bucket_step_px=8, max_aspect=2.0)


def png_bytes(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def smooth_picture(seed: int, width: int, height: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@dataclass
class World:
    """Where everything of one test lies."""

    root: Path
    base: Path
    store: Store
    manifest: Path
    images: Path
    encoded: Path
    mask_kind: str | None = None
    holdout: Path | None = None
    faces: list[Path] = field(default_factory=list)
    regularisation: list[Path] = field(default_factory=list)

    def encode_stage(self, **changes) -> EncodeStage:
        values = {
            "base_model": {"source": str(self.base)},
            "buckets": (BUCKETS,),
            "mask_kind": self.mask_kind,
            "unmasked_weights": (0.1,),
        }
        return EncodeStage.model_validate(values | changes)

    def encode(self, **changes) -> int:
        stage, tables = self.encode_stage(**changes), (self.manifest, self.images)
        more = (self.holdout, self.faces, self.regularisation)
        return encode_samples(stage, *tables, self.store, self.encoded, *more)

    def hold_out(self, count: int) -> None:
        """Move the last samples of the manifest to the holdout."""
        rows = read_rows(self.manifest)
        write_table(self.manifest, MANIFEST, rows[:-count])
        self.holdout = self.root / "holdout.parquet"
        write_table(self.holdout, HOLDOUT, [row | {"use": "held_out"} for row in rows[-count:]])

    def train_stage(self, init: str = "scratch", **changes) -> TrainStage:
        values = {
            "rank": 2,
            "steps": 6,
            "save_every": 2,
            "learning_rate": 1e-2,
            "precision": "float32",
            "buckets": BUCKETS,
            "caption_dropout": 0.2,
            "tensorboard": False,
            "masked_loss": {"kind": self.mask_kind, "unmasked_weight": 0.1},
        }
        training = TrainingSettings.model_validate(values | changes)
        return TrainStage.model_validate(
            {"training": training, "base_model": {"source": str(self.base)}, "init": init, "offline": True}
        )


def photo_rows(folder: Path, sizes: list[tuple[int, int]]) -> list[dict]:
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index, (width, height) in enumerate(sizes):
        path = folder / f"p{index}.png"
        path.write_bytes(png_bytes(smooth_picture(index, width, height)))
        rows.append(
            {
                "id": f"p{index}",
                "path": str(path),
                "repeats": 1 + index % 2,
                "sha256": sha256_of_file(path),
                "width_px": width,
                "height_px": height,
                "status": "ok",
                "reason": "",
            }
        )
    return rows


def half_mask(width: int, height: int) -> bytes:
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[:, : width // 2] = 255
    return png_bytes(mask)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("tiny") / "base"
    save_tiny(folder, seed=3)
    return folder


@pytest.fixture
def photo_world(tmp_path, tiny_folder) -> World:
    """Five photos in three buckets, the first four with a mask of their left half."""
    store = Store(tmp_path / "store")
    sizes = [(64, 64), (48, 48), (40, 40), (80, 40), (40, 60)]
    rows = photo_rows(tmp_path / "photos", sizes)
    samples = [
        {
            "sample_id": sha256_of_bytes(f"photo {index}".encode()),
            "image_sha256": row["sha256"],
            "mask_sha256": store.save_blob(half_mask(*sizes[index])) if index < 4 else None,
            "reference_sha256s": [],
            "caption": f"a photo of a person number {index}",
            "repeats": row["repeats"],
        }
        for index, row in enumerate(rows)
    ]
    write_table(tmp_path / "photos.parquet", PHOTOS, rows)
    write_table(tmp_path / "manifest.parquet", MANIFEST, samples)
    return World(
        tmp_path,
        tiny_folder,
        store,
        tmp_path / "manifest.parquet",
        tmp_path / "photos.parquet",
        tmp_path / "encoded.parquet",
        mask_kind="head",
    )


@pytest.fixture
def pair_world(tmp_path, tiny_folder) -> World:
    """Five pairs with 1, 1, 2, 3 and 4 references (the source first), every second one with a mask."""
    store = Store(tmp_path / "store")
    folder = tmp_path / "pairs"
    rows, samples = [], []
    for index, further in enumerate([0, 0, 1, 2, 3]):
        names = ["target", "source", *[f"reference{number}" for number in range(further)]]
        paths = {}
        for place, name in enumerate(names):
            path = folder / f"{index}-{name}.png"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(png_bytes(smooth_picture(100 * index + place, 40 + 8 * place, 40)))
            paths[name] = path
        sha256s = {name: sha256_of_file(path) for name, path in paths.items()}
        rows.append(
            {
                "id": f"pair{index}",
                "source_path": str(paths["source"]),
                "target_path": str(paths["target"]),
                "reference_paths": [str(paths[name]) for name in names[2:]],
                "sha256": sha256s["target"],
                "source_sha256": sha256s["source"],
                "reference_sha256s": [sha256s[name] for name in names[2:]],
                "width_px": 40,
                "height_px": 40,
                "source_width_px": 48,
                "source_height_px": 40,
                "repeats": 1,
                "status": "ok",
                "reason": "",
            }
        )
        samples.append(
            {
                "sample_id": sha256_of_bytes(f"pair {index}".encode()),
                "image_sha256": sha256s["target"],
                "mask_sha256": store.save_blob(half_mask(40, 40)) if index % 2 else None,
                "reference_sha256s": [sha256s[name] for name in names[1:]],
                "caption": "make the person smile",
                "repeats": 1,
            }
        )
    write_table(tmp_path / "pairs.parquet", PAIRS, rows)
    write_table(tmp_path / "manifest.parquet", MANIFEST, samples)
    return World(
        tmp_path,
        tiny_folder,
        store,
        tmp_path / "manifest.parquet",
        tmp_path / "pairs.parquet",
        tmp_path / "encoded.parquet",
        mask_kind="head",
    )
