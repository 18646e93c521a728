"""Render the pages: everything a subject's part needs is put together here, the templates only place it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import yaml

from likeness.evaluation.statistics import Estimate
from likeness.report.charts import draw_curves, number
from likeness.report.flags import Flag, flags_of, set_flags
from likeness.report.gather import (
    BASE,
    Checkpoint,
    Photo,
    Point,
    Row,
    Subject,
    checkpoint_of,
    curve_of,
    mean_of,
    usable,
)
from likeness.report.pictures import Pictures

TEMPLATES = Path(__file__).with_name("templates")
MEANINGS = {
    "likeness": "identity on the scale impostor 0, genuine 1; higher is better",
    "csim": "cosine to the subject's reference; higher is better",
    "descriptor_cosine": "cosine of a simple descriptor, standing in for a recogniser; higher is better",
    "detected": "share of images in which a face is found",
    "bleed_csim": "likeness without the trigger; lower is better",
    "diversity": "difference between seeds; not far below the base",
    "background_ssim": "likeness of the background to the base's, or to the source's",
    "target_error": "mean squared error to the true target; lower is better",
    "head_ratio": "head height against the body or the frame",
    "style_similarity": "likeness to the style's pictures; higher is better",
    "copying": "nearest training photo minus held-out; lower is better",
}
CHARTED = (
    "likeness",
    "csim",
    "descriptor_cosine",
    "target_error",
    "style_similarity",
    "bleed_csim",
    "background_ssim",
    "diversity",
    "detected",
    "head_ratio",
)
HEADLINES = ("likeness", "csim", "descriptor_cosine", "target_error", "style_similarity", "background_ssim")
COMPARED_ROWS = 8


@dataclass(frozen=True)
class Cell:
    metric: str
    text: str


@dataclass(frozen=True)
class FinalistRow:
    label: str
    chosen: bool
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class ComparedRow:
    prompt: str
    seed: int
    images: tuple[str | None, ...]


@dataclass(frozen=True)
class Part:
    """One subject's part of a page, ready to be placed."""

    view: Subject
    flags: list[Flag]
    shown: list[tuple[Photo, list[tuple[str, str | None]]]]
    headline: list[tuple[str, str, str]] = field(default_factory=list)
    variants: list[str] = field(default_factory=list)
    charts: list[tuple[str, str]] = field(default_factory=list)
    unmeasured: list[tuple[str, str]] = field(default_factory=list)
    finalist_metrics: list[str] = field(default_factory=list)
    finalists: list[FinalistRow] = field(default_factory=list)
    strengths: str = ""
    strength_metric: str = ""
    compare_labels: list[str] = field(default_factory=list)
    compare: list[ComparedRow] = field(default_factory=list)
    previous: list[tuple[str, str, str]] = field(default_factory=list)
    settings_text: str = ""


def render(template: str, parts: Sequence[Part], pictures: Pictures) -> str:
    """Fill a template with all subjects' parts."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    page = environment.get_template(template)
    return page.render(
        subjects=parts, style=jinja2.utils.markupsafe.Markup(style), meanings=MEANINGS, left_out=pictures.left_out
    )


def curation_part(subject: Subject, pictures: Pictures) -> Part:
    return Part(subject, list(set_flags(subject)), shown_photos(subject, pictures))


def report_part(subject: Subject, pictures: Pictures) -> Part:
    """Everything that the report says of one subject; images of the comparison come first in the budget."""
    compare_labels, compare = compared(subject, pictures)
    metrics, finalists = finalist_table(subject)
    metric, strengths = strength_chart(subject)
    curves = {name: curve_of(subject, name) for name in CHARTED}
    return Part(
        view=subject,
        flags=flags_of(subject),
        shown=shown_photos(subject, pictures),
        headline=headline(subject),
        variants=sorted({row["variant"] for row in subject.scores} - {"base"}),
        charts=[(name, draw_curves(found, subject.chosen, name)) for name, found in curves.items() if found],
        unmeasured=unmeasured(subject.scores),
        finalist_metrics=metrics,
        finalists=finalists,
        strengths=strengths,
        strength_metric=metric,
        compare_labels=compare_labels,
        compare=compare,
        previous=previous_table(subject),
        settings_text=yaml.safe_dump(subject.settings, sort_keys=False, allow_unicode=True, width=110),
    )


def shown_photos(subject: Subject, pictures: Pictures) -> list[tuple[Photo, list[tuple[str, str | None]]]]:
    """Thumbnails of every photo; the mask dims the photo, or the target of a pair."""
    order = {"kept": 0, "held out": 1, "dropped": 2}
    shown = []
    for photo in sorted(subject.photos, key=lambda one: (order[one.fate], one.name)):
        images = [
            (role, pictures.of_photo(path, photo.mask_sha256 if role in ("photo", "target") else None))
            for role, path in photo.files
        ]
        shown.append((photo, images))
    return shown


def label_of(checkpoint: Checkpoint) -> str:
    variant, phase, step = checkpoint
    return "base" if variant == "base" else f"{variant} {phase} {step}"


def spelled(found: Estimate | None) -> str:
    """A mean with its interval, or a dash where nothing was measured."""
    if found is None:
        return "–"
    interval = "" if found.low is None or found.high is None else f" [{number(found.low)}, {number(found.high)}]"
    return f"{number(found.value)}{interval}"


def report_mean(subject: Subject, metric: str, checkpoint: Checkpoint) -> Estimate | None:
    return mean_of(row for row in usable(subject.scores, metric, "report") if checkpoint_of(row) == checkpoint)


def headline(subject: Subject) -> list[tuple[str, str, str]]:
    """The first two metrics of the recipe that were measured: ours and the base's, on the report half."""
    found = []
    for metric in HEADLINES:
        ours = report_mean(subject, metric, subject.chosen) if subject.chosen else None
        if ours is not None:
            base = report_mean(subject, metric, BASE)
            found.append((metric, number(ours.value), number(base.value) if base else "–"))
    return found[:3]


def finalist_table(subject: Subject) -> tuple[list[str], list[FinalistRow]]:
    """Means of every metric on the report half for the base, the finalists and the chosen one."""
    rows = [row for row in subject.scores if row["split"] == "report" and row["value"] is not None]
    checkpoints = sorted({checkpoint_of(row) for row in rows}, key=lambda one: (one != BASE, one))
    metrics = sorted(
        {row["metric"] for row in rows}, key=lambda name: (CHARTED.index(name) if name in CHARTED else 99, name)
    )
    table = [
        FinalistRow(
            label_of(one),
            one == subject.chosen,
            tuple(Cell(metric, spelled(report_mean(subject, metric, one))) for metric in metrics),
        )
        for one in checkpoints
    ]
    return metrics, table


def strength_chart(subject: Subject) -> tuple[str, str]:
    """The ranking metric of the chosen checkpoint over LoRA strengths."""
    metric = (subject.best or {}).get("identity_metric") or ("target_error" if subject.recipe == "edit" else "likeness")
    rows = [row for row in usable(subject.scores, metric, "select", scale=None) if checkpoint_of(row) == subject.chosen]
    scales = sorted({row["lora_scale"] for row in rows})
    points = []
    for scale in scales:
        found = mean_of(row for row in rows if row["lora_scale"] == scale)
        if found is not None:
            points.append(Point((*(subject.chosen or BASE)[:2], round(100 * scale)), round(100 * scale), found))
    return metric, draw_curves({"chosen": points}, None, metric) if len(points) > 1 else ""


def unmeasured(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Metrics without any value, with the commonest reason."""
    measured = {row["metric"] for row in rows if row["value"] is not None}
    reasons: dict[str, Counter[str]] = {}
    for row in rows:
        if row["metric"] not in measured:
            reasons.setdefault(row["metric"], Counter())[row["status"]] += 1
    return sorted((metric, counts.most_common(1)[0][0]) for metric, counts in reasons.items())


def compared(subject: Subject, pictures: Pictures) -> tuple[list[str], list[ComparedRow]]:
    """The same prompts and seeds drawn by the base, the chosen checkpoint and the runners-up (report half)."""
    if subject.chosen is None:
        return [], []
    images: dict[tuple[Checkpoint, str, int], Row] = {}
    for row in subject.scores:
        if row["split"] == "report" and (row["variant"] == "base" or abs(row["lora_scale"] - 1) < 1e-9):
            images[checkpoint_of(row), row["prompt_id"], row["seed"]] = row
    drawn = {checkpoint for checkpoint, _, _ in images}
    others = sorted(drawn - {BASE, subject.chosen})
    columns = [one for one in [BASE, subject.chosen, *others[:2]] if one in drawn]
    places = sorted({(prompt, seed) for checkpoint, prompt, seed in images if checkpoint == columns[-1]})
    table = []
    for prompt, seed in places[:COMPARED_ROWS]:
        rows = [images.get((one, prompt, seed)) for one in columns]
        text = next((row["prompt"] for row in rows if row), prompt)
        table.append(ComparedRow(text, seed, tuple(pictures.of_image(row["image"]) if row else None for row in rows)))
    return [label_of(one) + (" (chosen)" if one == subject.chosen else "") for one in columns], table


def previous_table(subject: Subject) -> list[tuple[str, str, str]]:
    """Numbers of the LoRA that was published before beside today's."""
    before: dict[str, Any] = (subject.previous or {}).get("metrics") or {}
    now: dict[str, Any] = (subject.best or {}).get("metrics") or {}
    return [
        (metric, number(before[metric]["value"]), number(now[metric]["value"]))
        for metric in sorted(before.keys() & now.keys())
        if before[metric].get("value") is not None and now[metric].get("value") is not None
    ]
