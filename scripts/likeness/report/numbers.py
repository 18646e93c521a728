"""Numbers as the page shows them: each says where it can be found again.

A number renders itself as an HTML `data` element: the text is rounded, the `value` attribute is exact, and `data-…`
attributes name its source (scores, best, card, decisions, quality or settings) with all that finds it there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from likeness.evaluation.prompts import REPORT
from likeness.evaluation.scores import BASE, BASE_CHECKPOINT, Checkpoint, Scores
from likeness.evaluation.statistics import Estimate


def rounded(value: float) -> str:
    """A number with about three digits that matter, never in powers of ten unless it is tiny."""
    size = abs(value)
    if value == int(value) and size < 1e6:
        return f"{value:.0f}"
    if size >= 100:
        return f"{value:.0f}"
    if size >= 10:
        return f"{value:.1f}"
    return f"{value:.3f}" if size >= 0.01 else f"{value:.2g}"


@dataclass(frozen=True)
class Number:
    """One number with its whereabouts; `about` are the `data-…` attributes in order."""

    value: float
    about: tuple[tuple[str, str], ...]
    digits: int | None = None

    @property
    def text(self) -> str:
        return rounded(self.value) if self.digits is None else f"{self.value:.{self.digits}f}"

    def attributes(self) -> Markup:
        """The `data-…` attributes, each with a leading space."""
        return Markup("").join(Markup(' data-{}="{}"').format(key, text) for key, text in self.about)

    def __html__(self) -> str:
        return Markup('<data value="{}"{}>{}</data>').format(repr(self.value), self.attributes(), self.text)

    def __str__(self) -> str:
        return self.text


def count(subject: str, source: str, key: str, value: int) -> Number:
    """A count of rows of one of the subject's tables; `key` says which rows."""
    return Number(value, (("source", source), ("subject", subject), ("key", key)), 0)


@dataclass(frozen=True)
class Measured:
    """A mean with its interval, where there is one."""

    value: Number
    low: Number | None = None
    high: Number | None = None

    def __html__(self) -> str:
        if self.low is None or self.high is None:
            return self.value.__html__()
        return Markup('{} <small class="interval">{} to {}</small>').format(self.value, self.low, self.high)

    def __str__(self) -> str:
        return self.value.text


def measured_from(found: Estimate | Mapping[str, Any], about: tuple[tuple[str, str], ...]) -> Measured:
    """The three numbers of an estimate, or of its mapping in best.json."""
    parts = found._asdict() if isinstance(found, Estimate) else found
    low, high = (
        None if parts[name] is None else Number(float(parts[name]), (*about, ("part", name)))
        for name in ("low", "high")
    )
    return Measured(Number(float(parts["value"]), (*about, ("part", "value"))), low, high)


def estimated(
    subject: str, scores: Scores, checkpoint: Checkpoint, split: str, metric: str, scale: float = 1.0
) -> Measured | None:
    """Mean of a metric over the score rows of one checkpoint, half and strength; None where nothing was measured."""
    used = 1.0 if checkpoint == BASE_CHECKPOINT else scale
    found = scores.estimate(checkpoint, split, metric, used)
    if found is None:
        return None
    about = (
        ("source", "scores"),
        ("subject", subject),
        ("checkpoint", spelled(checkpoint)),
        ("metric", metric),
        ("split", split),
        ("scale", f"{used:g}"),
        ("base-model", scores.base_model),
    )
    return measured_from(found, about)


def from_best(subject: str, best: Mapping[str, Any] | None, metric: str) -> Measured | None:
    """A metric of the chosen checkpoint as best.json has it; None where it has none."""
    found = ((best or {}).get("metrics") or {}).get(metric)
    about = (("source", "best"), ("subject", subject), ("metric", metric), ("split", REPORT))
    return measured_from(found, about) if found and found["value"] is not None else None


def spelled(checkpoint: Checkpoint) -> str:
    """A checkpoint's name in attributes: variant/phase/step."""
    return f"{checkpoint.variant}/{checkpoint.phase}/{checkpoint.step}"


def label_of(checkpoint: Checkpoint) -> str:
    """A checkpoint's name for people."""
    if checkpoint.variant == BASE:
        return "base"
    return " · ".join(part for part in (checkpoint.variant, checkpoint.phase, f"step {checkpoint.step}") if part)


def short_labels(checkpoints: Sequence[Checkpoint]) -> dict[Checkpoint, str]:
    """Labels without what all checkpoints but the base share: `long, step 100`, or `step 100` within one variant."""
    trained = [one for one in checkpoints if one.variant != BASE]
    with_variant = len({one.variant for one in trained}) > 1
    with_phase = len({one.phase for one in trained}) > 1
    labels = {}
    for one in checkpoints:
        names = [one.variant] * with_variant + [one.phase] * with_phase
        labels[one] = "base" if one.variant == BASE else ", ".join([*names, f"step {one.step}"])
    return labels
