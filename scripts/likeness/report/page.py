"""Render the pages: everything a subject's part needs is put together here, the templates only place it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from likeness.evaluation.choice import METRICS_OF_RECIPE
from likeness.evaluation.metrics import REGISTRY
from likeness.evaluation.prompts import REPORT
from likeness.evaluation.scores import BASE_CHECKPOINT
from likeness.report.archive import Previous
from likeness.report.cautions import cautions
from likeness.report.charts import draw
from likeness.report.compare import Comparison, comparison
from likeness.report.crosstalk import Pair, Probed, pairs, probed
from likeness.report.curves import chosen_scale, ranking_metric, strength_chart, training_chart, variants_of
from likeness.report.flags import Flag, flags_of, set_flags
from likeness.report.floors import Missed, missed_floors
from likeness.report.gather import Photo, Subject
from likeness.report.numbers import Measured, Number, count, estimated, from_best, measured_from
from likeness.report.pictures import Pictures, Wanted
from likeness.report.refined import Settled, settled_phases
from likeness.report.score_tables import ScoreTable, distilled_table, report_table
from likeness.report.surgery import Ablated, Operated, ablated, operated
from likeness.yaml_text import yaml_text

TEMPLATES = Path(__file__).with_name("templates")
THUMB_PX = 168
CHARTED = ("bleed_csim", "background_ssim", "diversity", "detected", "head_ratio", "copying", "clip_score")
CARDS = 3
MOST_PREVIOUS = 3
OPEN_UP_TO = 60
"""Groups of photos larger than this are folded."""


@dataclass(frozen=True)
class Card:
    """One number of the first glance: ours, and the base's beside it."""

    metric: str
    ours: Measured
    base: Measured | None
    over_base: Measured | None


@dataclass(frozen=True)
class Shown:
    """One photo or pair of the contact sheet with the pictures it wants."""

    photo: Photo
    pictures: tuple[tuple[str, Wanted], ...]
    measures: tuple[tuple[str, Number], ...]


@dataclass(frozen=True)
class Sheet:
    """Photos of one fate."""

    fate: str
    shown: tuple[Shown, ...]

    @property
    def is_open(self) -> bool:
        return len(self.shown) <= OPEN_UP_TO


@dataclass(frozen=True)
class Curation:
    """One subject's part of the curation page, and the end of its part of the report."""

    view: Subject
    flags: list[Flag]
    sheets: list[Sheet]
    counts: dict[str, Number]

    def wanted(self) -> list[Wanted]:
        """Pictures of the contact sheets, kept photos first."""
        return [one for sheet in self.sheets for shown in sheet.shown for _, one in shown.pictures]


@dataclass(frozen=True)
class Before:
    """One LoRA of the archive beside today's: (metric, before, now)."""

    lora: Previous
    rows: list[tuple[str, Measured | None, Measured | None]]


@dataclass(frozen=True)
class Part:
    """One subject's part of the report."""

    view: Subject
    flags: list[Flag]
    curation: Curation
    cards: list[Card]
    levels: list[tuple[str, Number, Number]]
    variants: list[str]
    charts: list[tuple[str, Markup]]
    strength: Markup
    ranking_metric: str | None
    unmeasured: list[tuple[str, str]]
    missed: list[Missed]
    finalists: ScoreTable | None
    distilled: ScoreTable | None
    comparison: Comparison | None
    operated: list[Operated]
    ablated: list[Ablated]
    pairs: list[Pair]
    probed: list[Probed]
    settled: list[Settled]
    before: list[Before]
    settings_text: str


def render_curation(subjects: Sequence[Subject], pictures: Pictures) -> str:
    """The page of every photo and its fate."""
    parts = [curation_part(subject) for subject in subjects]
    pictures.share({part.view.name: part.wanted() for part in parts})
    return fill("curation.html.j2", parts, pictures)


def render_report(subjects: Sequence[Subject], pictures: Pictures) -> str:
    """The report; pictures of the comparisons come first in the budget."""
    parts = [report_part(subject) for subject in subjects]
    pictures.share({part.view.name: part.comparison.wanted() for part in parts if part.comparison})
    pictures.share({part.view.name: part.curation.wanted() for part in parts})
    return fill("report.html.j2", parts, pictures)


def fill(template: str, parts: Sequence[Curation | Part], pictures: Pictures) -> str:
    """Fill a template with all subjects' parts."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["words"] = lambda name: name.replace("_", " ")
    style = Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))
    return environment.get_template(template).render(
        parts=parts, style=style, metrics=REGISTRY, pictures=pictures, left_out=pictures.left_out
    )


def curation_part(subject: Subject) -> Curation:
    """What curation decided of one subject."""
    sheets = []
    for fate in ("kept", "held out", "dropped"):
        shown = tuple(shown_photo(subject, photo) for photo in subject.photos if photo.fate == fate)
        if shown:
            sheets.append(Sheet(fate, shown))
    funnel = subject.funnel
    counts = {"found": count(subject.name, "decisions", "found", funnel.found)}
    counts |= {f"phase:{name}": count(subject.name, "decisions", f"phase:{name}", kept) for name, kept in funnel.phases}
    counts |= {f"rule:{rule}": count(subject.name, "decisions", f"rule:{rule}", size) for rule, size in funnel.dropped}
    counts["held_out"] = count(subject.name, "decisions", "held_out", subject.held_out)
    return Curation(subject, [*cautions(subject), *set_flags(subject)], sheets, counts)


def shown_photo(subject: Subject, photo: Photo) -> Shown:
    """A photo with its pictures; the mask dims the photo, or the target of a pair."""
    pictures = tuple(
        (role, Wanted(THUMB_PX, path, mask_sha256=photo.mask_sha256 if role in ("photo", "target") else None))
        for role, path in photo.files
    )
    measures = tuple(
        (
            column,
            Number(
                value, (("source", "quality"), ("subject", subject.name), ("id", photo.name), ("key", column)), digits
            ),
        )
        for column, value, digits in photo.measures
    )
    return Shown(photo, pictures, measures)


def report_part(subject: Subject) -> Part:
    """Everything that the report says of one subject."""
    charts = [(name, training_chart(subject, name)) for name in charted(subject)]
    strength = strength_chart(subject)
    return Part(
        view=subject,
        flags=flags_of(subject),
        curation=curation_part(subject),
        cards=cards(subject),
        levels=levels(subject),
        variants=variants_of(subject),
        charts=[(name, draw(chart)) for name, chart in charts if chart is not None],
        strength=draw(strength) if strength else Markup(""),
        ranking_metric=ranking_metric(subject),
        unmeasured=unmeasured(subject),
        missed=missed_floors(subject),
        finalists=report_table(subject),
        distilled=distilled_table(subject),
        comparison=comparison(subject),
        operated=operated(subject, ranking_metric(subject)),
        ablated=ablated(subject, ranking_metric(subject)),
        pairs=pairs(subject),
        probed=probed(subject),
        settled=settled_phases(subject),
        before=before(subject),
        settings_text=yaml_text(subject.settings, width=100),
    )


def charted(subject: Subject) -> list[str]:
    """Metrics that get a chart: what the choice ranks by first, then the recipe's, then the floors."""
    metric = ranking_metric(subject)
    wanted = [*([metric] if metric else []), *METRICS_OF_RECIPE[subject.recipe], "csim", *CHARTED]
    stand_in = "descriptor_cosine"
    measured = {name for _, _, _, name in subject.scores.groups}
    hidden = {stand_in} if metric not in (stand_in, None) else set()
    return [name for name in dict.fromkeys(wanted) if name in measured - hidden]


def cards(subject: Subject) -> list[Card]:
    """The first measured metrics on the report half: what ranks, then the recipe's, then what must not suffer."""
    chosen = subject.chosen
    if chosen is None or subject.best is None:
        return []
    found = []
    for metric in charted(subject):
        ours = estimated(subject.name, subject.scores, chosen, REPORT, metric, chosen_scale(subject))
        if ours is not None:
            base = estimated(subject.name, subject.scores, BASE_CHECKPOINT, REPORT, metric)
            found.append(Card(metric, ours, base, from_best(subject.name, subject.best, f"{metric}_over_base")))
    return found[:CARDS]


def levels(subject: Subject) -> list[tuple[str, Number, Number]]:
    """Genuine and impostor level of the recogniser: (name, level, from how many images)."""
    calibration: dict[str, Any] = (subject.best or {}).get("calibration") or {}
    found = []
    for name in ("genuine", "impostor"):
        if calibration.get(name) is not None:
            about = (("source", "best"), ("subject", subject.name))
            level = Number(calibration[name], (*about, ("metric", f"calibration.{name}")))
            found.append(
                (name, level, Number(calibration[f"n_{name}"], (*about, ("metric", f"calibration.n_{name}")), 0))
            )
    return found


def unmeasured(subject: Subject) -> list[tuple[str, str]]:
    """Metrics without any value, with the commonest reason; that a prompt is of another kind says least."""
    measured = {row["metric"] for row in subject.rows if row["value"] is not None}
    reasons: dict[str, Counter[str]] = {}
    for row in subject.rows:
        if row["metric"] not in measured:
            reasons.setdefault(row["metric"], Counter())[row["status"]] += 1
    found = []
    for metric, counts in sorted(reasons.items()):
        ordered = sorted(counts.items(), key=lambda entry: ("not measured on" in entry[0], -entry[1], entry[0]))
        found.append((metric, ordered[0][0]))
    return found


def before(subject: Subject) -> list[Before]:
    """Numbers of the LoRAs that were published before beside today's, as far as either has them."""
    found = []
    for lora in subject.previous[:MOST_PREVIOUS]:
        about = (("source", lora.source), ("subject", subject.name), ("archive", lora.sha12))
        rows = []
        for metric, parts in sorted(lora.metrics.items()):
            then = (
                measured_from(parts, (*about, ("metric", metric), ("split", REPORT)))
                if parts["value"] is not None
                else None
            )
            rows.append((metric, then, from_best(subject.name, subject.best, metric)))
        found.append(Before(lora, rows))
    return found
