"""What deserves a second look, by name: signs of overfitting in the scores, and a set that teaches something unwanted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from likeness.report.gather import BASE, Subject, checkpoint_of, curve_of, mean_of, usable


@dataclass(frozen=True)
class Flag:
    """One finding: a name, what was measured, and what to do."""

    name: str
    text: str


def flags_of(subject: Subject) -> list[Flag]:
    """All findings of one subject, the set's first."""
    found = [*set_flags(subject)]
    if subject.chosen is not None:
        found += score_flags(subject)
    return found


def set_flags(subject: Subject) -> Iterator[Flag]:
    kept = [photo for photo in subject.photos if photo.kept_in]
    if subject.recipe == "character" and kept:
        if not 8 <= len(kept) <= 40:
            yield Flag("set size", f"{len(kept)} photos are trained on; 8 to 40 work best")
        framing = Counter(dict(photo.facts).get("framing") for photo in kept)
        if framing["close"] > len(kept) / 2:
            yield Flag(
                "headshots",
                f"{framing['close']} of {len(kept)} photos are close portraits; more half and full body photos keep heads from growing",
            )
    if subject.best and subject.best.get("identity_metric") not in (None, "csim", "likeness"):
        yield Flag(
            "stand-in", f"no face recogniser was configured; {subject.best['identity_metric']} stands in and says less"
        )
    if subject.settings["base_model"]["source"] == "miniature" and subject.settings["faces"]["backend"] == "opencv":
        yield Flag(
            "base too small",
            "the drawn world's base model is far too small to draw a real person; its images prove that the way works, not a likeness",
        )


def score_flags(subject: Subject) -> Iterator[Flag]:
    """Overfitting by its names: copying, bleed, big heads, low diversity, and a curve that fell after its best."""
    limits = subject.settings["choice"]
    copying = value(subject, "copying")
    if copying is not None and copying > 0.1:
        yield Flag(
            "copying",
            f"images are nearer to a training photo than to held-out ones by {copying:.2f}; train fewer steps",
        )
    bleed = value(subject, "bleed_csim")
    if bleed is not None and limits["max_bleed"] is not None and bleed > limits["max_bleed"]:
        yield Flag(
            "bleed",
            f"the class without the trigger looks like the subject ({bleed:.2f}); train fewer steps or lower the strength",
        )
    head, base_head = value(subject, "head_ratio"), value(subject, "head_ratio", base=True)
    if head is not None and base_head is not None and head > 1.25 * base_head:
        yield Flag("big heads", f"heads are {head / base_head:.2f} times the base's; add half and full body photos")
    diversity, base_diversity = value(subject, "diversity"), value(subject, "diversity", base=True)
    if diversity is not None and base_diversity and diversity < 0.5 * base_diversity:
        yield Flag(
            "low diversity",
            f"seeds differ {diversity / base_diversity:.2f} times as much as the base's; train fewer steps",
        )
    metric = subject.best.get("identity_metric") if subject.best else None
    for variant, points in curve_of(subject, metric or "likeness").items():
        peak = max(points, key=lambda point: point.estimate.value)
        if variant != "base" and points[-1].estimate.value < peak.estimate.value - 0.1:
            yield Flag(
                "over-trained",
                f"variant {variant} peaks at step {peak.checkpoint[2]} and falls to {points[-1].estimate.value:.2f} by its last",
            )


def value(subject: Subject, metric: str, base: bool = False) -> float | None:
    """Mean of a metric on the report half, of the chosen checkpoint or of the base."""
    wanted = BASE if base else subject.chosen
    found = mean_of(row for row in usable(subject.scores, metric, "report") if checkpoint_of(row) == wanted)
    return found.value if found else None
