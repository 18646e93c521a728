"""What deserves a second look, by name: signs of overfitting in the scores, and a set that teaches something unwanted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from markupsafe import Markup, escape

from likeness.config.metrics import lower_is_better
from likeness.evaluation.choice import METRICS_OF_RECIPE
from likeness.evaluation.prompts import REPORT, SELECT
from likeness.evaluation.scores import BASE_CHECKPOINT, Checkpoint
from likeness.evaluation.statistics import standard_error
from likeness.report.curves import chosen_scale, curve_points, training_of
from likeness.report.gather import Photo, Subject
from likeness.report.numbers import Number, count, estimated, from_best

SET_SIZE = (8, 40)
LEAST_SEEN = 50
"""Fewer views of each photo than this leave a small set undertrained."""
LEAST_BACKGROUNDS = 3
JUDGED_FROM = 4
"""Light and backgrounds are judged from so many measured photos on."""
MOST_COPYING = 0.1
BIG_HEADS = 1.25
LEAST_DIVERSITY = 0.5
LOST_GAIN = 0.2
"""Share of the best gain over the base that may be lost by the last checkpoint."""


@dataclass(frozen=True)
class Flag:
    """One finding: a name, and a sentence of words and numbers that says what was found and what to do."""

    name: str
    parts: tuple[str | Number, ...]

    @property
    def text(self) -> str:
        return "".join(map(str, self.parts))

    def __html__(self) -> str:
        return Markup("").join(escape(part) for part in self.parts)


def flags_of(subject: Subject) -> list[Flag]:
    """All findings of one subject, the scores' first."""
    return [*score_flags(subject), *set_flags(subject)]


def set_flags(subject: Subject) -> Iterator[Flag]:
    """What the set of photos and the settings tell before any score."""
    kept = subject.kept
    if subject.recipe == "character" and kept:
        yield from size_flags(subject, kept)
        yield from variety_flags(subject, kept)
    source, faces = subject.settings["base_model"]["source"], subject.settings["faces"]["backend"]
    if source == "miniature" and faces == "opencv":
        yield Flag(
            "base too small",
            (
                "the drawn world's base model is far too small to draw a real person; its images prove that the way "
                "works, not a likeness",
            ),
        )


def size_flags(subject: Subject, kept: list[Photo]) -> Iterator[Flag]:
    """How many photos there are, and how often training sees each."""
    least, most = SET_SIZE
    if not least <= len(kept) <= most:
        found = count(subject.name, "decisions", "kept", len(kept))
        yield Flag("set size", (found, f" photos are trained on; {least} to {most} work best"))
    seen = seen_per_photo(subject, kept)
    if seen < LEAST_SEEN:
        number = Number(seen, (("source", "settings"), ("subject", subject.name), ("key", "seen")), 0)
        yield Flag(
            "few repeats",
            (
                "training sees each photo ",
                number,
                f" times; under {LEAST_SEEN} a small set is hardly learned: train longer",
            ),
        )


def seen_per_photo(subject: Subject, kept: list[Photo]) -> float:
    """How often the chosen variant, else the first trained one, sees a photo over all its phases."""
    settings = subject.resolved
    chosen = subject.chosen.variant if subject.chosen else ""
    trained = settings.trained_variants
    variant = chosen if chosen in trained else next(iter(trained), None)
    if variant is None:
        return float("inf")
    seen = 0.0
    for phase in settings.phases:
        training = training_of(subject, variant, phase)
        views = sum(photo.repeats for photo in kept if phase in photo.kept_in)
        if training is not None and views:
            seen += training.fixed_steps * training.batch_size * training.gradient_accumulation / views
    return seen


def variety_flags(subject: Subject, kept: list[Photo]) -> Iterator[Flag]:
    """Whether framing, light and backgrounds vary."""
    framing = Counter(photo.fact("framing") for photo in kept)
    if framing["close"] > len(kept) / 2:
        close = count(subject.name, "quality", "close", framing["close"])
        of = count(subject.name, "decisions", "kept", len(kept))
        yield Flag(
            "headshots",
            (close, " of ", of, " photos are close portraits; more half and full body photos keep heads from growing"),
        )
    lights = [photo.light_cluster for photo in kept if photo.light_cluster is not None]
    if len(lights) >= JUDGED_FROM and len(set(lights)) == 1:
        number = count(subject.name, "quality", "light_cluster", len(lights))
        yield Flag(
            "one light",
            ("all ", number, " measured photos share one light set-up, which will be learned with the face"),
        )
    backgrounds = [photo.background_cluster for photo in kept if photo.background_cluster is not None]
    if len(backgrounds) >= JUDGED_FROM and len(set(backgrounds)) < LEAST_BACKGROUNDS:
        found = count(subject.name, "quality", "background_cluster", len(set(backgrounds)))
        word = " background" if len(set(backgrounds)) == 1 else " backgrounds"
        yield Flag("few backgrounds", ("the photos show only ", found, word, "; more places keep it out of the LoRA"))


def score_flags(subject: Subject) -> Iterator[Flag]:
    """What the scores tell: a stand-in for the metric, and overfitting by its names."""
    metric = (subject.best or {}).get("identity_metric")
    stands_in = metric not in (None, "csim", METRICS_OF_RECIPE[subject.recipe][0])
    if stands_in and metric in METRICS_OF_RECIPE[subject.recipe]:
        yield Flag(
            "stand-in",
            (
                f"faces were scored without a recogniser; {metric} stands in and says less about who it is. "
                "Put the files of evaluation.recogniser in place, or name another, and run again",
            ),
        )
    if subject.chosen is not None:
        yield from copying_flags(subject)
        yield from drawing_flags(subject)
        yield from gain_flags(subject, metric)
    if metric is not None:
        yield from overtrained_flags(subject, metric)


def copying_flags(subject: Subject) -> Iterator[Flag]:
    """Training photos that come back, and a subject that appears uncalled."""
    copying = reported(subject, "copying")
    if copying is not None and copying.value > MOST_COPYING:
        yield Flag(
            "copying",
            ("images are nearer to a training photo than to held-out ones by ", copying, "; train fewer steps"),
        )
    bleed, limit = reported(subject, "bleed_csim"), subject.settings["choice"]["max_bleed"]
    if bleed is not None and limit is not None and bleed.value > limit:
        yield Flag(
            "bleed",
            (
                "the class without the trigger looks like the subject (",
                bleed,
                "); train fewer steps or lower the strength",
            ),
        )


def gain_flags(subject: Subject, metric: str | None) -> Iterator[Flag]:
    """A gain over the bare base that may be chance, or none."""
    gain = from_best(subject.name, subject.best, f"{metric}_over_base")
    if gain is None or gain.low is None or gain.high is None or not gain.low.value <= 0 <= gain.high.value:
        return
    more = "held-out pairs" if subject.recipe == "edit" else "prompts"
    words = str(metric).replace("_", " ")
    text = f"the difference to the bare base in {words} on the report half may be chance: "
    yield Flag("gain not shown", (text, gain.value, " (", gain.low, " to ", gain.high, f"); add {more} to be sure"))


def drawing_flags(subject: Subject) -> Iterator[Flag]:
    """Heads that grow, and seeds that all draw the same, against the bare base."""
    head, base_head = reported(subject, "head_ratio"), reported(subject, "head_ratio", base=True)
    if head is not None and head.value > BIG_HEADS * (base_head.value if base_head else 1.0):
        against = (" where the base draws ", base_head) if base_head else ()
        yield Flag(
            "big heads",
            ("heads measure ", head, " of those in the photos", *against, "; add half and full body photos"),
        )
    diversity, base = reported(subject, "diversity"), reported(subject, "diversity", base=True)
    share = subject.settings["choice"]["min_diversity"]
    least = LEAST_DIVERSITY if share is None else share
    if diversity is not None and base is not None and diversity.value < least * base.value:
        yield Flag("low diversity", ("seeds differ by ", diversity, ", the base's by ", base, "; train fewer steps"))


def overtrained_flags(subject: Subject, metric: str) -> Iterator[Flag]:
    """Variants whose last checkpoint lost a good part of the best one's gain over the base, by more than chance."""
    scores, sign = subject.scores, -1 if lower_is_better(metric) else 1
    base = scores.mean(BASE_CHECKPOINT, SELECT, metric)
    for variant, points in curve_points(subject, metric).items():
        peak, last = max(points, key=lambda point: sign * point.value), points[-1]
        if base is None or sign * (peak.value - base) <= 0:
            continue
        lost = sign * (peak.value - last.value)
        if lost > LOST_GAIN * sign * (peak.value - base) and lost > lead_error(
            subject, peak.checkpoint, last.checkpoint, metric
        ):
            yield Flag(
                "over-trained",
                (
                    f"variant {variant} is best at step {peak.total_steps} with {metric.replace('_', ' ')} ",
                    peak.measured.value,
                    " and ends at ",
                    last.measured.value,
                ),
            )


def lead_error(subject: Subject, ours: Checkpoint, other: Checkpoint, metric: str) -> float:
    """Standard error of the paired difference of two checkpoints on the select half."""
    first, second = (subject.scores.clusters(one, SELECT, metric) for one in (ours, other))
    return standard_error([first[cluster] - second[cluster] for cluster in first if cluster in second])


def reported(subject: Subject, metric: str, base: bool = False) -> Number | None:
    """Mean of a metric on the report half, of the chosen checkpoint at its strength or of the base."""
    checkpoint = BASE_CHECKPOINT if base else subject.chosen
    assert checkpoint is not None
    found = estimated(subject.name, subject.scores, checkpoint, REPORT, metric, chosen_scale(subject))
    return found.value if found else None
