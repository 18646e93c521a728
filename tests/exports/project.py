"""A folder with an index, a store and a manifest, and a way to export them."""

from __future__ import annotations

import hashlib
import io
import json
import shlex
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from tests.photos.pictures import drawn, nothing_known

from likeness.config.exports import ExportStage
from likeness.config.photos import PairFolder, PhotoFolder, PhotoSettings
from likeness.exports.export import export_dataset
from likeness.photos.index import index_pair, index_photo
from likeness.photos.names import list_photos
from likeness.photos.pairs import list_pairs
from likeness.store import Store
from likeness.tables import MANIFEST, PAIRS, PHOTOS, write_table

SMALL = PhotoSettings(min_side_px=16)
MASK = np.zeros((64, 96), np.uint8)
MASK[16:48, 24:72] = 255


def png_of(pixels_HW: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels_HW).save(buffer, format="PNG")
    return buffer.getvalue()


class Project:
    """A folder with an index, a store and a manifest, and a way to export them."""

    def __init__(self, root: Path) -> None:
        root.mkdir(exist_ok=True)
        self.root, self.store = root, Store(root / "store")
        self.rows: list[dict[str, Any]] = []
        self.kind = "photos"

    def write_photos(self) -> Project:
        """Four photos: JPEG, PNG, a rotated JPEG, one seen three times."""
        folder = self.root / "photos"
        folder.mkdir()
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(drawn(1)).save(folder / "Ann 1.jpg")
        Image.fromarray(drawn(2)).save(folder / "b.png")
        Image.fromarray(drawn(3)).save(folder / "turned.jpg", exif=exif)
        Image.fromarray(drawn(4)).save(folder / "thrice.webp", lossless=True)
        rows = [index_photo(photo, SMALL, nothing_known()) for photo in list_photos([PhotoFolder(path=str(folder))])]
        write_table(self.images, PHOTOS, rows)
        mask = self.store.save_blob(png_of(MASK))
        for row in rows:
            repeats = 3 if row["id"] == "thrice" else 1
            own_mask = None if row["id"] in ("b", "turned") else mask
            self.add(row["sha256"], [], f"j4ne, {row['id']}\nsecond line", repeats, own_mask)
        return self

    def write_photo(self) -> Project:
        """One photo with a mask, for tests that export often."""
        folder = self.root / "photos"
        folder.mkdir()
        Image.fromarray(drawn(2)).save(folder / "b.png")
        rows = [index_photo(photo, SMALL, nothing_known()) for photo in list_photos([PhotoFolder(path=str(folder))])]
        write_table(self.images, PHOTOS, rows)
        self.add(rows[0]["sha256"], [], "j4ne", 2, self.store.save_blob(png_of(MASK)))
        return self

    def write_pairs(self, num_references: int = 3, masked: bool = False) -> Project:
        """Two pairs; references beside the source have other sizes, and one another ending."""
        folder, self.kind = self.root / "pairs", "pairs"
        folder.mkdir()
        for number in (1, 2):
            for role, seed in (("start", 10), ("end", 20)):
                Image.fromarray(drawn(seed + number)).save(folder / f"0{number}_{role}.png")
            Image.fromarray(drawn(30 + number, 40, 40)).save(
                folder / f"0{number}_start2.{'png' if number == 1 else 'jpg'}"
            )
            Image.fromarray(drawn(40 + number, 50, 30)).save(folder / f"0{number}_start3.png")
            Image.fromarray(drawn(50 + number, 30, 50)).save(folder / f"0{number}_start4.png")
            for place in range(num_references + 1, 5):
                next(folder.glob(f"0{number}_start{place}.*")).unlink()
        rows = [index_pair(pair, SMALL, nothing_known()) for pair in list_pairs([PairFolder(path=str(folder))])]
        write_table(self.images, PAIRS, rows)
        mask = self.store.save_blob(png_of(MASK)) if masked else None
        for row in rows:
            self.add(row["sha256"], [row["source_sha256"], *row["reference_sha256s"]], f"make it {row['id']}", 1, mask)
        return self

    @property
    def images(self) -> Path:
        return self.root / "images.parquet"

    def add(self, image: str, references: list[str], caption: str, repeats: int, mask: str | None) -> None:
        self.rows.append(
            {
                "sample_id": hashlib.sha256(f"{image}{caption}".encode()).hexdigest(),
                "image_sha256": image,
                "mask_sha256": mask,
                "reference_sha256s": references,
                "caption": caption,
                "repeats": repeats,
            }
        )
        write_table(self.root / "manifest.parquet", MANIFEST, self.rows)

    def stage(self, trainer: str = "simpletuner", training: dict[str, Any] | None = None, **more: Any) -> ExportStage:
        values = {
            "trainer": trainer,
            "training": training or {},
            "kind": self.kind,
            "recipe": "edit" if self.kind == "pairs" else "character",
            "trigger": "j4ne",
            "base_model": {"source": "black-forest-labs/FLUX.2-klein-base-4B"},
            "prompts": ["{trigger} in a garden", "a {class} on a beach"],
        }
        return ExportStage.model_validate(values | more)

    def export(self, name: str = "out", **stage: Any) -> tuple[Path, list[str]]:
        folder = self.root / name
        chosen = self.stage(**stage)
        warnings = export_dataset(chosen, self.root / "manifest.parquet", self.images, self.store, folder)
        return folder, warnings


MASKED = {"masked_loss": {"kind": "head"}, "rank": 16, "alpha": 8, "schedule": {"name": "cosine", "warmup_steps": 20}}


def files_below(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def config_of(path: Path) -> Any:
    """A config file of any kind; the flags of a script by name, each with its values."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".toml":
        return tomllib.loads(text)
    if path.suffix == ".sh":
        words = shlex.split(text.partition("accelerate launch")[2].replace("\\\n", " "))
        places = [place for place, word in enumerate(words) if word.startswith("--")]
        return {words[a][2:]: words[a + 1 : b] for a, b in zip(places, [*places[1:], len(words)], strict=True)}
    return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else yaml.safe_load(text)


def keys_of(value: Any) -> set[str]:
    """Every key of a config, at any depth."""
    if isinstance(value, dict):
        return set(value) | {name for inner in value.values() for name in keys_of(inner)}
    return {name for inner in value for name in keys_of(inner)} if isinstance(value, list) else set()
