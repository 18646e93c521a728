"""Settings of the photos stage: which folders hold photos or pairs, and what is too small to use."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from likeness.config.base import Settings

LONGEST_SIDE_PX = 32766
"""The longest side of a picture that OpenCV can cut a crop from: it counts places in 16 bits."""


class PhotoFolder(Settings):
    """One folder of photos; a bare string in YAML is its `path`."""

    path: str = Field(description="Folder of photos, searched through all subfolders.")
    repeats: int = Field(default=1, ge=1, le=1000, description="How often each of its photos is seen in one epoch.")
    masks: str | None = Field(
        default=None,
        description="Folder of your own masks, one PNG of the same name a photo: white inside, or transparent outside. "
        "They say what is learned; quality is measured without them.",
    )


class PairFolder(Settings):
    """One set of before/after pairs; a bare string in YAML is its `path`."""

    path: str = Field(
        description="Flat folder (`NN_start`, `NN_start2`, `NN_end`, `NN.txt`), or the base of `roles` or `table`."
    )
    roles: dict[str, str] | None = Field(
        default=None,
        description="One folder a role, below `path`: source, target, reference, reference2 … (same file names).",
    )
    table: str | None = Field(
        default=None, description="CSV, TSV, JSONL or Parquet table below `path` with columns source, target …"
    )
    repeats: int = Field(default=1, ge=1, le=1000, description="How often each of its pairs is seen in one epoch.")
    masks: str | None = Field(
        default=None,
        description="Folder of your own masks of the target, one PNG of the pair's name each: white inside, or "
        "transparent outside. They say what is learned; quality is measured without them, so nothing of the hair.",
    )


def folders_from_text(value: Any) -> Any:
    """Let one path, or a list of paths, stand for a list of folders."""
    if value is None:
        return []
    entries = value if isinstance(value, list) else [value]
    return [{"path": entry} if isinstance(entry, str) else entry for entry in entries]


PhotoFolders = Annotated[
    list[PhotoFolder],
    BeforeValidator(folders_from_text, json_schema_input_type=list[PhotoFolder | str] | PhotoFolder | str | None),
]
PairFolders = Annotated[
    list[PairFolder],
    BeforeValidator(folders_from_text, json_schema_input_type=list[PairFolder | str] | PairFolder | str | None),
]


class PhotoSettings(Settings):
    """What makes a file a usable photo."""

    min_side_px: int = Field(
        default=256, ge=8, description="Photos whose shorter side is below this are dropped, in px."
    )
    max_side_px: int = Field(
        default=16384,
        ge=64,
        le=LONGEST_SIDE_PX,
        description="Photos with a longer side are dropped unread, in px.",
    )
    near_duplicate_bits: int = Field(
        default=8,
        ge=0,
        le=32,
        description="Perceptual hashes (64 bit) at most this far apart are near duplicates, in bits.",
    )


class PhotoStage(Settings):
    """The slice that the index stage reads."""

    kind: Literal["photos", "pairs"]
    folders: list[PhotoFolder] | list[PairFolder]
    photo: PhotoSettings
