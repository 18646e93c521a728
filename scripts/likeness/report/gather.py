"""Gather what the report shows from the tables of a run: one typed view a subject, nothing recomputed but means.

Every number that the page prints is a mean over score rows, named by (variant, phase, step, metric, split), so that it
can be found again in results/scores.parquet.
"""

from __future__ import annotations

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from likeness.evaluation.statistics import Estimate, cluster_means, estimate
from likeness.tables import CAPTIONS, DECISIONS, FACES, MASKS, QUALITY, SCORES, read_rows

Row = dict[str, Any]
Checkpoint = tuple[str, str, int]
BASE: Checkpoint = ("base", "", 0)


@dataclass(frozen=True)
class Photo:
    """One photo or pair as the page shows it."""

    name: str
    files: tuple[tuple[str, str], ...]
    kept_in: tuple[str, ...]
    rule: str
    reason: str
    caption: str
    caption_by: str
    mask_sha256: str | None
    facts: tuple[tuple[str, str], ...]

    @property
    def fate(self) -> str:
        if self.kept_in:
            return "kept"
        return "held out" if self.rule == "held_out" else "dropped"


@dataclass(frozen=True)
class Funnel:
    """How many samples were found, and how many each phase trains on; `dropped` counts rules of the first phase."""

    found: int
    phases: tuple[tuple[str, int], ...]
    dropped: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Point:
    """Mean and interval of a metric at one checkpoint; `total_steps` counts the phases before as well."""

    checkpoint: Checkpoint
    total_steps: int
    estimate: Estimate


@dataclass(frozen=True)
class Subject:
    """All that one subject's part of the page needs."""

    name: str
    settings: dict[str, Any]
    photos: tuple[Photo, ...]
    funnel: Funnel
    holdout: int
    scores: tuple[Row, ...] = ()
    best: dict[str, Any] | None = None
    published: dict[str, Any] | None = None
    previous: dict[str, Any] | None = None
    calibration: dict[str, Any] | None = None
    timings: tuple[tuple[str, int, float], ...] = ()
    warnings: tuple[str, ...] = field(default=())

    @property
    def recipe(self) -> str:
        return self.settings["recipe"]

    @property
    def chosen(self) -> Checkpoint | None:
        if not self.best or self.best.get("variant") is None:
            return None
        return self.best["variant"], self.best["phase"], self.best["step"]


def read_json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def gather_subject(results: Path, name: str, settings: dict[str, Any], with_scores: bool) -> Subject:
    """Read one subject's tables; without scores, only what curation wrote."""
    folder = results / name
    decisions = read_rows(folder / "phases" / "decisions.parquet", DECISIONS)
    photos = gather_photos(folder, settings, decisions)
    subject = Subject(
        name, settings, photos, gather_funnel(settings, decisions), sum(photo.fate == "held out" for photo in photos)
    )
    if not with_scores:
        return subject
    best = read_json(folder / "best.json")
    published = read_json(folder / "lora" / "published.json")
    return Subject(
        **{**subject.__dict__, "scores": tuple(gather_scores(folder)), "best": best, "published": published}
        | {
            "previous": previous_best(folder / "lora", best),
            "calibration": read_json(folder / "evaluation" / "base" / "calibration.json"),
        }
        | {"timings": tuple(gather_timings(results, name))}
    )


def gather_scores(folder: Path) -> list[Row]:
    """Every score row of one subject, from all its score tables."""
    return [row for path in sorted(folder.glob("evaluation/**/scores.parquet")) for row in read_rows(path, SCORES)]


def gather_funnel(settings: dict[str, Any], decisions: Sequence[Row]) -> Funnel:
    phases = list(settings["phases"])
    kept = Counter(row["phase"] for row in decisions if row["kept"])
    first = [row for row in decisions if row["phase"] == phases[0]]
    dropped = Counter(row["rule"] for row in first if not row["kept"])
    return Funnel(len(first), tuple((phase, kept[phase]) for phase in phases), tuple(dropped.most_common()))


def gather_photos(folder: Path, settings: dict[str, Any], decisions: Sequence[Row]) -> tuple[Photo, ...]:
    """One entry a photo or pair: its files, fate, caption and mask."""
    pairs = settings["recipe"] == "edit"
    images = read_rows(folder / ("pairs.parquet" if pairs else "photos.parquet"))
    captions = {row["id"]: row for row in read_rows(folder / "captions.parquet", CAPTIONS)}
    quality = {row["id"]: row for row in read_rows(folder / "quality.parquet", QUALITY)}
    subjects = {
        (row["id"], row["role"], row["face"]) for row in read_rows(folder / "faces.parquet", FACES) if row["is_subject"]
    }
    kind = settings["training"]["masked_loss"]["kind"] or "head"
    masks = {
        row["id"]: row["mask_sha256"]
        for row in read_rows(folder / "masks.parquet", MASKS)
        if row["kind"] == kind
        and row["role"] in ("photo", "target")
        and (row["id"], row["role"], row["face"]) in subjects
    }
    by_name: defaultdict[str, list[Row]] = defaultdict(list)
    for row in decisions:
        by_name[row["id"]].append(row)
    first_phase = next(iter(settings["phases"]))
    found = []
    for image in images:
        own = by_name[image["id"]]
        first = next(
            (row for row in own if row["phase"] == first_phase), {"rule": image["status"], "reason": image["reason"]}
        )
        caption = captions.get(image["id"], {})
        found.append(
            Photo(
                name=image["id"],
                files=files_of(image, pairs),
                kept_in=tuple(row["phase"] for row in own if row["kept"]),
                rule=first["rule"],
                reason=first["reason"] or "",
                caption=caption.get("caption") or "",
                caption_by=caption.get("caption_by") or "",
                mask_sha256=masks.get(image["id"]),
                facts=tuple(facts_of(quality.get(image["id"], {}))),
            )
        )
    return tuple(found)


def files_of(image: Row, pairs: bool) -> tuple[tuple[str, str], ...]:
    """(role, path) of the files behind one row."""
    if not pairs:
        return (("photo", image["path"]),)
    references = [(f"reference {place}", path) for place, path in enumerate(image["reference_paths"] or [], 1)]
    files = [("source", image["source_path"]), *references, ("target", image["target_path"])]
    return tuple((role, path) for role, path in files if path)


def facts_of(quality: Row) -> Iterable[tuple[str, str]]:
    """The measured facts worth a word."""
    for key in ("framing", "pose", "light", "background"):
        if quality.get(key):
            yield key, str(quality[key])
    for key, digits in (
        ("sharpness", 0),
        ("face_px", 0),
        ("identity_cosine", 2),
        ("background_ssim", 2),
        ("shift_px", 1),
        ("pair_identity", 2),
    ):
        if quality.get(key) is not None:
            yield key.replace("_", " "), f"{quality[key]:.{digits}f}"


def previous_best(folder: Path, best: dict[str, Any] | None) -> dict[str, Any] | None:
    """best.json of the LoRA that was published before this one, where the archive holds it."""
    archived = list((folder / "archive").glob("*/best.json"))
    others = [
        found
        for path in archived
        if (found := read_json(path)) and found.get("lora_sha256") != (best or {}).get("lora_sha256")
    ]
    order = read_json(folder / "archive" / "order.json")
    latest = (order or {}).get("latest")
    return next(
        (found for found in others if (found.get("lora_sha256") or "").startswith(str(latest))),
        others[-1] if others else None,
    )


def gather_timings(results: Path, name: str) -> Iterable[tuple[str, int, float]]:
    """(rule, jobs, seconds) from Snakemake's benchmark files of one subject."""
    for rule in sorted(path for path in (results / ".benchmarks").glob("*") if path.is_dir()):
        files = [path for path in rule.rglob("*.tsv") if name in path.relative_to(rule).with_suffix("").parts]
        seconds = 0.0
        for path in files:
            with path.open(encoding="utf-8", newline="") as file:
                seconds += sum(float(row["s"]) for row in csv.DictReader(file, delimiter="\t"))
        if files:
            yield rule.name, len(files), seconds


def checkpoint_of(row: Row) -> Checkpoint:
    return row["variant"], row["phase"], row["step"]


def usable(rows: Iterable[Row], metric: str, split: str, scale: float | None = 1.0) -> list[Row]:
    """Measured rows of one metric and half; at one strength, the base's rows included."""
    return [
        row
        for row in rows
        if row["metric"] == metric
        and row["split"] == split
        and row["value"] is not None
        and (scale is None or row["variant"] == "base" or abs(row["lora_scale"] - scale) < 1e-9)
    ]


def mean_of(rows: Iterable[Row]) -> Estimate | None:
    """Mean over seeds, then prompts, with its interval; None without rows."""
    triples = [(row["source_id"] or row["prompt_id"], row["prompt_id"], row["value"]) for row in rows]
    means = cluster_means(triples)
    return estimate(list(means.values())) if means else None


def steps_before(settings: dict[str, Any]) -> dict[tuple[str, str], int]:
    """Steps that the phases before a phase took, by (variant, phase)."""
    found: dict[tuple[str, str], int] = {}
    for variant, own in settings["variants"].items():
        total = 0
        for phase, values in settings["phases"].items():
            if own["phases"] and phase not in own["phases"]:
                continue
            found[variant, phase] = total if values["init"] == "previous" else 0
            total = found[variant, phase] + (
                values["steps"] or own["training"].get("steps") or settings["training"]["steps"]
            )
    return found


def curve_of(subject: Subject, metric: str, split: str = "select") -> dict[str, list[Point]]:
    """Points of one metric by variant, in training order; the base under its own name."""
    before = steps_before(subject.settings)
    groups: defaultdict[Checkpoint, list[Row]] = defaultdict(list)
    for row in usable(subject.scores, metric, split):
        groups[checkpoint_of(row)].append(row)
    curves: defaultdict[str, list[Point]] = defaultdict(list)
    for checkpoint, rows in groups.items():
        found = mean_of(rows)
        if found is not None:
            total = before.get(checkpoint[:2], 0) + checkpoint[2]
            curves[checkpoint[0]].append(Point(checkpoint, total, found))
    return {name: sorted(points, key=lambda point: point.total_steps) for name, points in sorted(curves.items())}
