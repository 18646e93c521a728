"""Write an export's folder: hard links where possible, nothing stale, every file listed with its sha256.

Only the folders `data` and `config` and the files written here belong to the export; what a trainer puts beside them
(caches, checkpoints) stays.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from likeness.errors import UserError
from likeness.exports.samples import Sample
from likeness.photos.images import ImageRef
from likeness.photos.load import (
    convert_profile,
    decode_photo,
    format_of,
    open_image,
    orientation_of,
    read_photo_bytes,
)
from likeness.store import (
    Store,
    canonical_json,
    clear_leftovers,
    item_key,
    sha256_of_bytes,
    sha256_of_file,
    temporary_beside,
    write_atomically,
)

VERSION = 1
LINKED_FORMATS = {"jpeg": ".jpg", "png": ".png", "webp": ".webp"}
"""Formats that every trainer reads, with the ending that they get."""
OWNED_FOLDERS = ("data", "config")
LIST_NAME = "files.json"
WARNINGS_NAME = "export_warnings.txt"


@dataclass
class ExportFolder:
    """One export's folder under construction; `written` maps relative paths to sha256."""

    root: Path
    store: Store
    written: dict[str, str] = field(default_factory=dict)

    def write_text(self, relative: str, text: str) -> None:
        """Write a text file as it is (captions carry no line end: a second line would be a second caption)."""
        self.place(relative, text.encode())

    def write_json(self, relative: str, value: Any) -> None:
        self.write_text(relative, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def place(self, relative: str, data: bytes) -> None:
        write_atomically(self.root / relative, data)
        self.written[relative] = sha256_of_bytes(data)

    def link(self, source: Path, relative: str, sha256: str) -> None:
        """Put a file into the folder without a second copy of its bytes; across file systems it is copied."""
        path = self.root / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(path.parent)
        temporary = temporary_beside(path)
        try:
            os.link(source.resolve(), temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        temporary.replace(path)
        temporary.unlink(missing_ok=True)  # renaming one link onto another of the same file leaves both
        self.written[relative] = sha256

    def link_blob(self, sha256: str, relative: str) -> None:
        """Put a stored file into the folder, after checking its bytes."""
        self.link(self.store.path_of(sha256), relative, sha256)

    def finish(self, warnings: list[str]) -> None:
        """Write the warnings and the list of files, remove what earlier exports left, and check that all is there."""
        self.write_text(WARNINGS_NAME, "".join(f"{line}\n" for line in warnings))
        self.remove_stale()
        for relative, sha256 in self.written.items():
            path = self.root / relative
            if not path.is_file() or sha256_of_file(path) != sha256:
                raise UserError(
                    f"{path}: missing or changed while exporting. Is another program writing there? Run again."
                )
        listed = [{"path": name, "sha256": self.written[name]} for name in sorted(self.written)]
        lines = ",\n".join(f"  {canonical_json(entry)}" for entry in listed)
        write_atomically(self.root / LIST_NAME, f"[\n{lines}\n]\n".encode())

    def remove_stale(self) -> None:
        """Remove files in the export's own folders that this export did not write, then empty folders."""
        for name in OWNED_FOLDERS:
            for path in sorted((self.root / name).rglob("*"), reverse=True):
                if path.is_dir():
                    if not any(path.iterdir()):
                        path.rmdir()
                elif path.relative_to(self.root).as_posix() not in self.written:
                    path.unlink()


def read_checked(image: ImageRef) -> bytes:
    """Read an image's bytes; raises UserError when the file is no longer the one that was selected."""
    data = read_photo_bytes(image.path)
    if sha256_of_bytes(data) != image.sha256:
        raise UserError(f"{image.path}: changed since it was indexed. Run again, so that the index is made anew.")
    return data


def plain_ending(data: bytes, name: str) -> str | None:
    """Ending under which a file can go to a trainer as it is; None where it needs rotation, colours or another format."""
    with open_image(data, name) as image:
        ending = LINKED_FORMATS.get(format_of(image))
        animated = getattr(image, "is_animated", False)
        profile = image.info.get("icc_profile")
        if ending is None or animated or image.mode != "RGB" or "transparency" in image.info:
            return None
        if orientation_of(image) != 1 or (profile and convert_profile(image, profile) is not image):
            return None
        return ending


def place_images(folder: ExportFolder, places: dict[str, ImageRef], ending: str | None = None) -> dict[str, str]:
    """Put images at `place + ending` and return their relative paths.

    All get the same ending: their own where all are alike and plain (and equal to `ending`, if given), else PNG.
    """
    data = {place: read_checked(image) for place, image in places.items()}
    endings = {plain_ending(data[place], image.path) for place, image in places.items()}
    common = endings.pop() if len(endings) == 1 else None
    if common is not None and common == (ending or common):
        for place, image in places.items():
            folder.link(Path(image.path), f"{place}{common}", image.sha256)
        return {place: f"{place}{common}" for place in places}
    for place, image in places.items():
        folder.link_blob(stored_png(folder.store, data[place], image), f"{place}.png")
    return {place: f"{place}.png" for place in places}


def stored_png(store: Store, data: bytes, image: ImageRef) -> str:
    """The upright sRGB photo as a stored PNG: its sha256."""
    key = item_key("export_png", VERSION, {}, "", image.sha256)
    item = store.load_or_compute(
        "export_png", key, lambda: ({}, {"image.png": png_bytes(decode_photo(data, image.path))})
    )
    return item.files["image.png"]


def place_mask(
    folder: ExportFolder, sample: Sample, relative: str, unmasked_weight: float, inverted: bool = False
) -> None:
    """Put a sample's mask at `relative`, what is not learned raised to the grey level of `unmasked_weight`; no mask is
    white. An `inverted` mask teaches its outside."""
    level = round(255 * unmasked_weight)
    learned = sample.learned
    content = [sample.mask_sha256, level, learned.width_px, learned.height_px, *(["inverted"] if inverted else [])]

    def compute() -> tuple[dict[str, Any], dict[str, bytes]]:
        if sample.mask_sha256 is None:
            mask_HW = np.full((learned.height_px or 1, learned.width_px or 1), 255, dtype=np.uint8)
        else:
            mask_HW = np.asarray(Image.open(io.BytesIO(folder.store.read_blob(sample.mask_sha256))).convert("L"))
            mask_HW = 255 - mask_HW if inverted else mask_HW
        return {}, {"mask.png": png_bytes(np.maximum(mask_HW, np.uint8(level)))}

    item = folder.store.load_or_compute("export_mask", item_key("export_mask", VERSION, {}, "", content), compute)
    folder.link_blob(item.files["mask.png"], relative)


def png_bytes(pixels: np.ndarray) -> bytes:
    """Encode (H, W) or (H, W, 3) uint8 as PNG, fast rather than small."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
