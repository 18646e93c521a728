"""Make one row for every photo or pair found: hashes, upright size, format, perceptual hashes, or the reason why not.

Each file is read and hashed every time, since dates are not trusted, but decoded only where no job has met its bytes
before: what a decoder tells is an item of the store, packed with many others (`packs.py`), whatever the file is called
and whatever sizes the settings allow. The perceptual hash is the 64-bit DCT hash of a grey copy that was shrunk by whole
steps first, a JPEG while it is decoded (much faster, same hash to a bit or two); the mirror image has its own hash,
because a flipped photo is far from itself.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from likeness.config.photos import PairFolder, PhotoFolder, PhotoSettings, PhotoStage
from likeness.errors import UserError
from likeness.packs import PackedItems
from likeness.photos.load import PhotoError, decode_small, read_header, read_photo_bytes
from likeness.photos.names import PhotoFile, is_utf8, list_photos, shard_of
from likeness.photos.pairs import PairFiles, list_pairs
from likeness.store import Store, item_key, sha256_of_bytes

VERSION = 2
STAGE = "photos"
HASH_SIDE_PX = 128
PHASH_GRID_PX, PHASH_SIDE = 32, 8
ASPECT_TOLERANCE = 0.01
"""Source and target of a pair may differ this much in width over height (rounding of a resize), relative."""


def cosines(count: int, length: int) -> NDArray[np.float64]:
    """The first basis vectors of the discrete cosine transform of type II, (count, length), without scale."""
    frequency_F, place_L = np.arange(count)[:, None], np.arange(length)[None, :]
    return 2 * np.cos(np.pi * frequency_F * (2 * place_L + 1) / (2 * length))


COSINES_FL = cosines(PHASH_SIDE, PHASH_GRID_PX)
MIRROR_SIGNS_F = np.where(np.arange(PHASH_SIDE) % 2, -1.0, 1.0)
"""What mirroring a picture does to its coefficients: odd horizontal frequencies change sign."""
COEFFICIENT_DIGITS = 6
"""Coefficients are rounded to so many decimals, so that noise in those that are zero decides about no bit."""


def index_photos(stage: PhotoStage, shard: int, shards: int, store: Store) -> list[dict[str, Any]]:
    """Index one shard of the photos; raises UserError when a folder is absent or holds nothing."""
    folders = photo_folders(stage)
    check_folders(folders, "photos")
    found = list_photos(folders)
    check_any(found, folders, "photos")
    with PackedItems(store, STAGE) as known:
        return [index_photo(photo, stage.photo, known) for photo in found if shard_of(photo.id, shards) == shard]


def index_pairs(stage: PhotoStage, shard: int, shards: int, store: Store) -> list[dict[str, Any]]:
    """Index one shard of the pairs; raises UserError when a folder or table is absent or holds nothing."""
    folders = pair_folders(stage)
    check_folders(folders, "pairs")
    found = list_pairs(folders)
    check_any(found, folders, "pairs")
    with PackedItems(store, STAGE) as known:
        return [index_pair(pair, stage.photo, known) for pair in found if shard_of(pair.id, shards) == shard]


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


def index_photo(photo: PhotoFile, settings: PhotoSettings, known: PackedItems) -> dict[str, Any]:
    """One PHOTOS row; a file that cannot be used keeps what is known of it, with status and reason."""
    row = {"id": photo.id, "path": photo.path, "repeats": photo.repeats, **mask_facts(photo.mask_path)}
    return row | measure_file(photo.path, settings, known)


def mask_facts(path: str | None) -> dict[str, str | None]:
    """Path and hash of the user's own mask; without its hash an edited mask would leave the index as it was.

    One that cannot be read has no hash: the masks stage says what is wrong with it.
    """
    with contextlib.suppress(PhotoError):
        return {"mask_path": path, "mask_sha256": sha256_of_bytes(read_photo_bytes(path)) if path else None}
    return {"mask_path": path, "mask_sha256": None}


def measure_file(path: str, settings: PhotoSettings, known: PackedItems) -> dict[str, Any]:
    """Hash and measure one file, and open it where its bytes are new: columns of a PHOTOS row, with status and reason."""
    facts: dict[str, Any] = {"status": "ok", "reason": ""}
    try:
        data = read_photo_bytes(path)
        sha256 = sha256_of_bytes(data)
        facts |= {"sha256": sha256, "size_bytes": len(data)}
        key = item_key(STAGE, VERSION, None, "", sha256)
        record = known.find(key)
        header = record["header"] if record else asdict(read_header(data, path))
        facts |= header
        check_sides(path, header["width_px"], header["height_px"], settings)
    except PhotoError as error:
        return facts | {"status": error.status, "reason": str(error)}
    decoded = record["decoded"] if record else decoded_facts(data, path)
    if not record:
        known.keep(key, {"header": header, "decoded": decoded})
    return facts | decoded | ({"reason": f"{path}{decoded['reason']}"} if "reason" in decoded else {})


def decoded_facts(data: bytes, path: str) -> dict[str, Any]:
    """What decoding a photo tells: size and perceptual hashes, or what is wrong with it, in words that follow its path."""
    try:
        small, (width_px, height_px) = decode_small(data, path, HASH_SIDE_PX)
    except PhotoError as error:
        return {"status": error.status, "reason": str(error).removeprefix(path)}
    phash, phash_mirror = perceptual_hashes(small)
    return {"width_px": width_px, "height_px": height_px, "phash": phash, "phash_mirror": phash_mirror}


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
    """64-bit perceptual hashes of an RGB image and of its mirror image, as 16 hex digits (those of imagehash.phash)."""
    factor = max(1, math.floor(min(image.size) / HASH_SIDE_PX))
    grey = (image.reduce(factor) if factor > 1 else image).convert("L")
    small = grey.resize((PHASH_GRID_PX, PHASH_GRID_PX), Image.Resampling.LANCZOS)
    coefficients_FF = (COSINES_FL @ np.asarray(small, np.float64) @ COSINES_FL.T).round(COEFFICIENT_DIGITS)
    return bits_above_median(coefficients_FF), bits_above_median(coefficients_FF * MIRROR_SIGNS_F)


def bits_above_median(coefficients_FF: NDArray[np.float64]) -> str:
    """One bit a coefficient, row by row, as hex digits."""
    return np.packbits(coefficients_FF > np.median(coefficients_FF)).tobytes().hex()


def index_pair(pair: PairFiles, settings: PhotoSettings, known: PackedItems) -> dict[str, Any]:
    """One PAIRS row: every role is measured, and the first thing wrong, from missing roles to sizes, is the reason."""
    row: dict[str, Any] = {"id": pair.id, "repeats": pair.repeats, **mask_facts(pair.mask_path)}
    references = [role for role in pair.paths if role.startswith("reference")]
    row |= {"source_path": pair.paths.get("source"), "target_path": pair.paths.get("target")}
    row["reference_paths"] = [pair.paths[role] for role in references]
    facts = {role: measure_file(path, settings, known) for role, path in pair.paths.items()}
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
