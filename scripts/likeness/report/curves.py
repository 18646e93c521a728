"""Curves over training and over strength, from the select half's score rows."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from likeness.config.training import TrainingSettings
from likeness.evaluation.prompts import REPORT, SELECT
from likeness.evaluation.scores import BASE, BASE_CHECKPOINT, Checkpoint
from likeness.report.charts import Chart, Curve, Dot
from likeness.report.gather import Subject
from likeness.report.numbers import Measured, estimated, label_of


@dataclass(frozen=True)
class Point:
    """A checkpoint's mean; `total_steps` counts the phases before as well."""

    checkpoint: Checkpoint
    total_steps: int
    measured: Measured

    @property
    def value(self) -> float:
        return self.measured.value.value


def training_of(subject: Subject, variant: str, phase: str) -> TrainingSettings | None:
    """Training settings of one variant and phase with its number of steps; None where the variant does not train it.

    The steps are those that the training took, where it is done, else what is asked with the phase's samples.
    """
    settings = subject.resolved
    if variant not in settings.trained_variants or phase not in settings.phases_of(variant):
        return None
    asked = settings.training_of(variant, phase).resolve_steps(dict(subject.funnel.phases)[phase])
    return asked.model_copy(update={"steps": subject.steps_taken.get((variant, phase), asked.fixed_steps)})


def steps_before(subject: Subject) -> dict[tuple[str, str], int]:
    """Steps that the phases before a phase took, by (variant, phase); a phase that starts afresh has none."""
    settings = subject.resolved
    found: dict[tuple[str, str], int] = {}
    for variant in settings.trained_variants:
        total = 0
        for phase in settings.phases_of(variant):
            training = training_of(subject, variant, phase)
            assert training is not None
            found[variant, phase] = total if settings.phases[phase].follows else 0
            total = found[variant, phase] + training.fixed_steps
    return found


def curve_points(subject: Subject, metric: str) -> dict[str, list[Point]]:
    """Points of one metric by variant, in training order; without the base."""
    before = steps_before(subject)
    curves: defaultdict[str, list[Point]] = defaultdict(list)
    for checkpoint in subject.scores.candidates:
        found = estimated(subject.name, subject.scores, checkpoint, SELECT, metric)
        if found is not None:
            total = before.get((checkpoint.variant, checkpoint.phase), 0) + checkpoint.step
            curves[checkpoint.variant].append(Point(checkpoint, total, found))
    return {name: sorted(curves[name], key=lambda point: point.total_steps) for name in curves}


def variants_of(subject: Subject) -> list[str]:
    """Variants in the order of the configuration, as far as scores name them; a curve's colour is its place here."""
    scored = {checkpoint.variant for checkpoint in subject.scores.sha256s} - {BASE}
    return [*(name for name in subject.settings["variants"] if name in scored)]


def colour_of(subject: Subject, variant: str) -> int:
    """A variant's colour on every chart; what surgery made has one that no variant has."""
    variants = variants_of(subject)
    return variants.index(variant) if variant in variants else len(variants)


def training_chart(subject: Subject, metric: str) -> Chart | None:
    """One metric over optimizer steps; None where no checkpoint was measured."""
    points = curve_points(subject, metric)
    if not points:
        return None
    curves = [
        Curve(
            name,
            [
                Dot(point.total_steps, point.measured, label_of(point.checkpoint), point.checkpoint == subject.chosen)
                for point in points.get(name, [])
            ],
        )
        for name in variants_of(subject)
    ]
    level = estimated(subject.name, subject.scores, BASE_CHECKPOINT, SELECT, metric)
    return Chart(metric.replace("_", " "), "optimizer steps", curves, level, phase_marks(subject), 0.0)


def phase_marks(subject: Subject) -> list[tuple[float, str]]:
    """Where the phases of the chosen variant begin, where it runs several."""
    variant = subject.chosen.variant if subject.chosen else next(iter(subject.settings["variants"]))
    marks = [(float(total), phase) for (name, phase), total in steps_before(subject).items() if name == variant]
    return marks if len(marks) > 1 else []


def ranking_metric(subject: Subject) -> str | None:
    """The metric that the choice was made by."""
    return (subject.best or {}).get("identity_metric")


def strength_chart(subject: Subject) -> Chart | None:
    """The ranking metric of the chosen checkpoint over LoRA strengths; None with fewer than two strengths."""
    metric, chosen = ranking_metric(subject), subject.chosen
    if metric is None or chosen is None or subject.best is None:
        return None
    groups = subject.scores.groups
    scales = sorted(scale for one, split, scale, name in groups if (one, split, name) == (chosen, SELECT, metric))
    dots = []
    for scale in scales:
        found = estimated(subject.name, subject.scores, chosen, SELECT, metric, scale)
        if found is not None:
            dots.append(Dot(scale, found, f"strength {scale:g}", scale == subject.best["lora_scale"]))
    level = estimated(subject.name, subject.scores, BASE_CHECKPOINT, SELECT, metric)
    curves = [Curve("chosen", dots, colour_of(subject, chosen.variant))]
    return (
        Chart(metric.replace("_", " "), "LoRA strength", curves, level, x_ticks=[dot.x for dot in dots])
        if len(dots) > 1
        else None
    )


def chosen_scale(subject: Subject) -> float:
    """The strength at which the chosen checkpoint's report-half numbers are shown: the recommended one if it was drawn."""
    scale = (subject.best or {}).get("lora_scale")
    if scale is None or subject.chosen is None:
        return 1.0
    drawn = {found for one, split, found, _ in subject.scores.groups if (one, split) == (subject.chosen, REPORT)}
    return scale if scale in drawn else 1.0
