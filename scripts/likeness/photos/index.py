"""Make one row for every photo or pair found: hashes, upright size, format, perceptual hashes, or the reason why not.

Each file is read once and decoded once. The perceptual hash is imagehash's 64-bit DCT hash, taken of a grey copy that
was shrunk by whole steps first (much faster, same hash to a bit or two); the mirror image has its own hash, because a
flipped photo is far from itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imagehash
from PIL import Image

from likeness.config.photos import PairFolder, PhotoFolder, PhotoSettings, PhotoStage
from likeness.errors import UserError
from likeness.photos.load import PhotoError, decode_image, read_header, read_photo_bytes
from likeness.photos.names import PhotoFile, is_utf8, list_photos, shard_of
from likeness.photos.pairs import PairFiles, list_pairs
from likeness.store import sha256_of_bytes

VERSION = 1
HASH_SIDE_PX = 256
PHASH_GRID_PX = 32
ASPECT_TOLERANCE = 0.01
"""Source and target of a pair may differ this much in width over height (rounding of a resize), relative."""


def index_photos(stage: PhotoStage, shard: int, shards: int) -> list[dict[str, Any]]:
    """Index one shard of the photos; raises UserError when a folder is absent or holds nothing."""
    folders = photo_folders(stage)
    check_folders(folders, "photos")
    found = list_photos(folders)
    check_any(found, folders, "photos")
    return [index_photo(photo, stage.photo) for photo in found if shard_of(photo.id, shards) == shard]


def index_pairs(stage: PhotoStage, shard: int, shards: int) -> list[dict[str, Any]]:
    """Index one shard of the pairs; raises UserError when a folder or table is absent or holds nothing."""
    folders = pair_folders(stage)
    check_folders(folders, "pairs")
    found = list_pairs(folders)
    check_any(found, folders, "pairs")
    return [index_pair(pair, stage.photo) for pair in found if shard_of(pair.id, shards) == shard]


def photo_folders(stage: PhotoStage) -> list[PhotoFolder]:
    return [PhotoFolder.model_validate(folder.model_dump(exclude_unset=True)) for folder in stage.folders]


def pair_folders(stage: PhotoStage) -> list[PairFolder]:
    """The slice's folders as pairs; a plain path reads as either kind of folder, so it is read again here."""
    return [PairFolder.model_validate(folder.model_dump(exclude_unset=True)) for folder in stage.folders]


def check_folders(folders: Sequence[PhotoFolder | PairFolder], key: str) -> None:
    """Raise one UserError that names every configured folder or table that is not there, with its key."""
    wrong: list[str] = []
    for position, folder in enumerate(folders):
        where = f"{key}[{position}]"
        wanted = {f"{where}.path": folder.path}
        if isinstance(folder, PairFolder):
            below = {f"{where}.roles.{role}": path for role, path in (folder.roles or {}).items()}
            below |= {f"{where}.table": folder.table} if folder.table else {}
            wanted |= {name: str(Path(folder.path, path)) for name, path in below.items()}
        wanted |= {f"{where}.masks": folder.masks} if folder.masks else {}
        wrong += [f"{name}: there is no {path}" for name, path in wanted.items() if not Path(path).exists()]
        wrong += [f"{where}.path: rename {name!r}, which is not UTF-8" for name in undecodable_names(folder.path)]
    if wrong:
        raise UserError("; ".join(wrong) + ". Paths are relative to the working directory; mend the path or add files.")


def undecodable_names(folder: str) -> list[str]:
    """File names below a folder that no table could hold."""
    return [str(path.name) for path in sorted(Path(folder).rglob("*")) if not is_utf8(path.name)]


def check_any(found: Sequence[PhotoFile | PairFiles], folders: Sequence[PhotoFolder | PairFolder], key: str) -> None:
    """Raise UserError when the folders are there but hold nothing."""
    if not found:
        paths = ", ".join(f"{key}[{position}].path {folder.path}" for position, folder in enumerate(folders))
        raise UserError(f"{paths}: no {key} found there. Put {key} into the folder, or mend the path.")


def index_photo(photo: PhotoFile, settings: PhotoSettings) -> dict[str, Any]:
    """One PHOTOS row; a file that cannot be used keeps what is known of it, with status and reason."""
    row = {"id": photo.id, "path": photo.path, "repeats": photo.repeats, "mask_path": photo.mask_path}
    return row | measure_file(photo.path, settings)


def measure_file(path: str, settings: PhotoSettings) -> dict[str, Any]:
    """Hash, measure and decode one file once: columns of a PHOTOS row, with status and reason."""
    facts: dict[str, Any] = {"status": "ok", "reason": ""}
    try:
        data = read_photo_bytes(path)
        facts |= {"sha256": sha256_of_bytes(data), "size_bytes": len(data)}
        header = read_header(data, path)
        facts |= {"format": header.format, "width_px": header.width_px, "height_px": header.height_px}
        check_sides(path, header.width_px, header.height_px, settings)
        image = decode_image(data, path)
        facts |= {"height_px": image.height, "width_px": image.width}
        facts["phash"], facts["phash_mirror"] = perceptual_hashes(image)
    except PhotoError as error:
        facts |= {"status": error.status, "reason": str(error)}
    return facts


def check_sides(path: str, width_px: int, height_px: int, settings: PhotoSettings) -> None:
    """Refuse photos that are too small or too large; raises PhotoError."""
    size = f"{path}: {width_px} × {height_px} px"
    if max(width_px, height_px) > settings.max_side_px:
        raise PhotoError(
            "too_large", f"{size}; photo.max_side_px allows {settings.max_side_px}. Save a smaller copy or raise it."
        )
    if min(width_px, height_px) < settings.min_side_px:
        raise PhotoError(
            "too_small", f"{size}; photo.min_side_px asks for {settings.min_side_px}. Bring a larger copy or lower it."
        )


def perceptual_hashes(image: Image.Image) -> tuple[str, str]:
    """64-bit perceptual hashes of an RGB image and of its mirror image, as 16 hex digits (imagehash.phash)."""
    factor = max(1, math.floor(min(image.size) / HASH_SIDE_PX))
    grey = (image.reduce(factor) if factor > 1 else image).convert("L")
    # What imagehash does first; it leaves a picture of that size alone, and the filter is symmetric, so once is enough.
    small = grey.resize((PHASH_GRID_PX, PHASH_GRID_PX), Image.Resampling.LANCZOS)
    mirror = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return str(imagehash.phash(small)), str(imagehash.phash(mirror))


def index_pair(pair: PairFiles, settings: PhotoSettings) -> dict[str, Any]:
    """One PAIRS row: every role is measured, and the first thing wrong, from missing roles to sizes, is the reason."""
    row: dict[str, Any] = {"id": pair.id, "repeats": pair.repeats, "mask_path": pair.mask_path}
    references = [role for role in pair.paths if role.startswith("reference")]
    row |= {"source_path": pair.paths.get("source"), "target_path": pair.paths.get("target")}
    row["reference_paths"] = [pair.paths[role] for role in references]
    facts = {role: measure_file(path, settings) for role, path in pair.paths.items()}
    target, source = facts.get("target", {}), facts.get("source", {})
    row |= {name: target.get(name) for name in ("sha256", "width_px", "height_px", "phash", "phash_mirror")}
    row |= {f"source_{name}": source.get(name) for name in ("sha256", "width_px", "height_px", "phash")}
    row["reference_sha256s"] = [facts[role].get("sha256") for role in references]
    row["caption"] = pair.caption
    status, reason = pair_status(pair, facts)
    return row | {"status": status, "reason": reason}


def pair_status(pair: PairFiles, facts: dict[str, dict[str, Any]]) -> tuple[str, str]:
    """Status and reason of a pair: stray file, missing roles, a role that cannot be used, sizes that differ."""
    if pair.stray:
        return "no_role", (
            f"{pair.stray}: belongs to no pair. Name it NN_start, NN_start2 … or NN_end, or remove it; "
            "of two files with one name and different endings only the first is read."
        )
    if pair.missing:
        there = ", ".join(f"{role} {path}" for role, path in pair.paths.items()) or "nothing"
        return "missing_role", f"missing: {', '.join(pair.missing)}; found: {there}. Add the file, or remove the pair."
    for role, found in facts.items():
        if found["status"] != "ok":
            return found["status"], f"{role}: {found['reason']}"
    source, target = facts["source"], facts["target"]
    if differ_in_aspect(source, target):
        return "size_mismatch", (
            f"source {source['width_px']} × {source['height_px']} px and target {target['width_px']} × "
            f"{target['height_px']} px differ in aspect. Crop both alike."
        )
    return "ok", ""


def differ_in_aspect(source: dict[str, Any], target: dict[str, Any]) -> bool:
    """Whether width over height differs by more than rounding; sizes may differ, as a resize brings them together."""
    ratio = (source["width_px"] * target["height_px"]) / (source["height_px"] * target["width_px"])
    return abs(math.log(ratio)) > ASPECT_TOLERANCE
