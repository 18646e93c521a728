"""Views: the ways in which a sample can be shown, by resolution and mirrored or not, and which one chance shows.

A view is called by its sample's id where it is the plain one (the main resolution, not mirrored); the others carry what
differs behind it, as in `<id>@512`, `<id>@1024|mirrored`. Mirrored latents are those of the mirrored picture: to mirror
latents is not the same. Which view is shown is a function of (seed, step, sample id), like all else that chance decides;
a micro-batch has one resolution, that of its first sample, because its samples must be of one size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from likeness.config.training import TrainingSettings
from likeness.training.noise import generator_for

SEPARATOR, MIRRORED = "@", "|mirrored"


def view_name(sample_id: str, resolution_px: int, mirrored: bool, settings: TrainingSettings) -> str:
    """What a view is called."""
    if resolution_px == settings.buckets.resolution_px and not mirrored:
        return sample_id
    return f"{sample_id}{SEPARATOR}{resolution_px}{MIRRORED if mirrored else ''}"


def name_of_row(row: Mapping[str, Any], settings: TrainingSettings) -> str:
    """What the view of an ENCODED row is called."""
    return view_name(row["sample_id"], row["resolution_px"], row["mirrored"], settings)


def sample_of(name: str) -> str:
    """The id of the sample that a view shows."""
    return name.partition(SEPARATOR)[0]


def is_read(row: Mapping[str, Any], settings: TrainingSettings) -> bool:
    """Whether a training reads the view of an ENCODED row."""
    return row["resolution_px"] in settings.all_resolutions_px and (settings.flip > 0 or not row["mirrored"])


def is_plain(row: Mapping[str, Any], settings: TrainingSettings) -> bool:
    """Whether an ENCODED row is a sample's plain view, of which there is one a sample."""
    return row["resolution_px"] == settings.buckets.resolution_px and not row["mirrored"]


def choose_views(batches: Sequence[Sequence[str]], settings: TrainingSettings, step: int) -> list[list[str]]:
    """Draw how the samples of a step's micro-batches are shown; returns the names of views in their places."""
    seen: Counter[str] = Counter()
    chosen = []
    for sample_ids in batches:
        resolution_px = draw_resolution(settings, step, sample_ids[0], seen[sample_ids[0]])
        names = []
        for sample_id in sample_ids:
            mirrored = draw_mirrored(settings, step, sample_id, seen[sample_id])
            names.append(view_name(sample_id, resolution_px, mirrored, settings))
            seen[sample_id] += 1
        chosen.append(names)
    return chosen


def draw_resolution(settings: TrainingSettings, step: int, sample_id: str, occurrence: int) -> int:
    """One of the resolutions, all alike likely."""
    if not settings.resolutions_px:
        return settings.buckets.resolution_px
    generator = generator_for(settings.seed, "resolution", step, sample_id, occurrence)
    return settings.all_resolutions_px[int(generator.integers(len(settings.all_resolutions_px)))]


def draw_mirrored(settings: TrainingSettings, step: int, sample_id: str, occurrence: int) -> bool:
    """Whether the sample is shown mirrored."""
    return settings.flip > 0 and bool(
        generator_for(settings.seed, "mirror", step, sample_id, occurrence).random() < settings.flip
    )
