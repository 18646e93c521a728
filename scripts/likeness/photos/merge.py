"""Join the shards of the index: exact duplicates are dropped, near duplicates are grouped.

Exact duplicates have the same bytes (a pair: of target, source and references); the one with the smallest id stays,
one with a mask of the user's first. Near duplicates are at most `near_duplicate_bits` apart in perceptual hash, mirror
images included, and look the same on a second look (`alike`); whatever hangs together is one group. Nothing is dropped
for it here: the phases keep the best.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from likeness.config.photos import PhotoStage
from likeness.photos.alike import SmallCopies
from likeness.tables import PAIRS, PHOTOS, merge_tables

Alike = Callable[[Mapping[str, Any], Mapping[str, Any]], bool]

VERSION = 1
CHUNK = 64
"""Rows that are compared with all others at once: few enough for the processor's cache."""
ODD_COLUMNS = np.uint64(0x5555555555555555)
"""Bits of a perceptual hash (rows of 8, first column highest) whose cosine changes sign in the mirror image."""
MIRROR_SLACK_BITS = 8
"""A mirror hash derived by those bits may be this far off, as coefficients near the median do not change sides."""


def merge_photos(paths: Sequence[Path], stage: PhotoStage) -> list[dict[str, Any]]:
    """Join shard tables into the rows of photos.parquet or pairs.parquet, with duplicates and groups filled in."""
    rows = merge_tables(paths, PAIRS if stage.kind == "pairs" else PHOTOS).to_pylist()
    mark_duplicates(rows)
    mark_near_duplicates(rows, stage.photo.near_duplicate_bits, SmallCopies().alike)
    return rows


def mark_duplicates(rows: list[dict[str, Any]]) -> None:
    """Give all but one of the rows with equal bytes the status `duplicate`; the reason names the one that stays."""
    kept: dict[tuple[str, ...], str] = {}
    for row in sorted(rows, key=lambda row: (row["mask_path"] is None, row["id"])):
        if row["status"] != "ok":
            continue
        content = (row["sha256"], row.get("source_sha256") or "", *(row.get("reference_sha256s") or ()))
        first = kept.setdefault(content, row["id"])
        if first != row["id"]:
            row |= {"status": "duplicate", "reason": f"the same file as {first}, which is kept. Remove one of them."}


def mark_near_duplicates(rows: list[dict[str, Any]], bits: int, alike: Alike | None = None) -> None:
    """Name each group of near duplicates after its smallest id; rows that are not ok stay out."""
    usable = [row for row in rows if row["status"] == "ok"]
    labels = near_duplicate_labels(usable, bits, alike)
    members: dict[int, list[str]] = {}
    for row, label in zip(usable, labels, strict=True):
        members.setdefault(int(label), []).append(row["id"])
    for row, label in zip(usable, labels, strict=True):
        group = members[int(label)]
        row["near_duplicate_group"] = min(group) if len(group) > 1 else None


def near_duplicate_labels(rows: Sequence[dict[str, Any]], bits: int, alike: Alike | None = None) -> np.ndarray:
    """Number the connected groups of rows, (N,) int; equal numbers are near duplicates.

    A pair is near another only when target and source both are: many pairs may share a background. `alike` looks
    again at two rows whose hashes are close.
    """
    if not rows:
        return np.zeros(0, dtype=int)
    hashes, mirrors = hashes_of(rows, "phash"), hashes_of(rows, "phash_mirror")
    sources = hashes_of(rows, "source_phash") if "source_phash" in rows[0] else None
    first: list[np.ndarray] = []
    second: list[np.ndarray] = []
    for start in range(0, len(rows), CHUNK):
        block, rest = slice(start, start + CHUNK), slice(start, None)
        same = close(hashes[block], hashes[rest], bits)
        flipped = close(hashes[block], mirrors[rest], bits) | close(mirrors[block], hashes[rest], bits)
        if sources is not None:
            same &= close(sources[block], sources[rest], bits)
            flipped &= close(sources[block], sources[rest] ^ ODD_COLUMNS, bits + MIRROR_SLACK_BITS)
        left, right = np.nonzero(same | flipped)
        first.append(left + start)
        second.append(right + start)
    left, right = np.concatenate(first), np.concatenate(second)
    if alike is not None:
        kept = [i < j and alike(rows[i], rows[j]) for i, j in zip(left, right, strict=True)]
        left, right = left[kept], right[kept]
    if not len(left):
        return np.arange(len(rows))
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(left), dtype=np.int8), (left, right)), shape=(len(rows), len(rows)))
    return connected_components(links, directed=False)[1]


def hashes_of(rows: Sequence[dict[str, Any]], column: str) -> np.ndarray:
    """Perceptual hashes as (N,) uint64."""
    return np.array([int(row[column], 16) for row in rows], dtype=np.uint64)


def close(block: np.ndarray, others: np.ndarray, bits: int) -> np.ndarray:
    """Which hashes are at most `bits` apart: (B,) and (N,) uint64 give (B, N) bool."""
    return np.bitwise_count(block[:, None] ^ others[None, :]) <= bits
