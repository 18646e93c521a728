"""Which checkpoint is the best: chosen on the select half, reported on the report half.

Scores of training are non-monotonic, so every checkpoint of all phases and variants is a candidate. Among those that
keep the floors, the best mean of the recipe's metric is found, and then the earliest checkpoint whose paired difference
to it is within one standard error: that costs nothing measurable and avoids the luck of the maximum. Numbers that
people read come from the report half, which no decision ever sees.

An image without a face is worth 0 on the identity scale while candidates are ranked, or the lowest value that was
measured where that is lower still (it stays null in the table), so that a checkpoint gains nothing by hiding faces.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from likeness.config.evaluation import ChoiceStage
from likeness.config.metrics import lower_is_better
from likeness.errors import UserError
from likeness.evaluation.prompts import REPORT, SELECT
from likeness.evaluation.scores import BASE_CHECKPOINT, FACELESS_IS_ZERO, Checkpoint, Row, Scores
from likeness.evaluation.statistics import paired_difference, standard_error

VERSION = 1
METRICS_OF_RECIPE = {
    "character": ("likeness", "csim", "descriptor_cosine"),
    "edit": ("target_error",),
    "style": ("style_similarity",),
}
"""What a recipe ranks by; the next one stands in where the first could not be measured."""


@dataclass(frozen=True)
class Ranking:
    """The candidates by mean on the select half, best first, and what became of them.

    `allowed` are those that keep the floors. `waived` names floors that were not applied, since every checkpoint misses them
    or none keeps the others together; `unmeasured` names floors that no number could be held against. `chosen` is None
    where nothing could be ranked; then `reason` says why.
    """

    metric: str | None
    ranked: tuple[Checkpoint, ...]
    means: Mapping[Checkpoint, Mapping[Hashable, float]]
    allowed: tuple[Checkpoint, ...] = ()
    waived: tuple[str, ...] = ()
    unmeasured: tuple[str, ...] = ()
    best: Checkpoint | None = None
    chosen: Checkpoint | None = None
    reason: str = ""


def rank(scores: Scores, stage: ChoiceStage) -> Ranking:
    """Rank all checkpoints on the select half and choose; hand-made picks are not looked at here."""
    candidates = scores.candidates
    metric, reason = _metric_of(scores, candidates, stage)
    if metric is None:
        return Ranking(None, (), {}, reason=reason)
    means = {checkpoint: scores.ranking_clusters(checkpoint, metric) for checkpoint in candidates}
    means = {checkpoint: clusters for checkpoint, clusters in means.items() if clusters}
    sign = -1 if lower_is_better(metric) else 1
    height = {checkpoint: sign * sum(values.values()) / len(values) for checkpoint, values in means.items()}
    place = {checkpoint: number for number, checkpoint in enumerate(candidates)}
    ranked = tuple(sorted(means, key=lambda checkpoint: (-height[checkpoint], place[checkpoint])))
    missed, unmeasured = _floors(scores, ranked, stage)
    allowed, waived = _keeping(ranked, missed)
    best = allowed[0]
    chosen = next(
        checkpoint
        for checkpoint in sorted(allowed, key=lambda checkpoint: place[checkpoint])
        if _is_as_good(means[checkpoint], means[best], sign, stage.choice.standard_errors)
    )
    return Ranking(metric, ranked, means, allowed, waived, unmeasured, best, chosen)


def _is_as_good(
    ours: Mapping[Hashable, float], best: Mapping[Hashable, float], sign: int, standard_errors: float
) -> bool:
    """Whether the best leads by at most so many standard errors of the paired difference over clusters."""
    shared = [cluster for cluster in best if cluster in ours]
    leads = [sign * (best[cluster] - ours[cluster]) for cluster in shared]
    return bool(leads) and sum(leads) / len(leads) <= standard_errors * standard_error(leads)


def _metric_of(scores: Scores, candidates: Sequence[Checkpoint], stage: ChoiceStage) -> tuple[str | None, str]:
    """The first of the recipe's metrics that was measured, or why there is none."""
    if not candidates:
        return None, "there is no checkpoint to choose from"
    wanted = (stage.choice.metric,) if stage.choice.metric else METRICS_OF_RECIPE[stage.recipe]
    reasons: list[str] = []
    for metric in wanted:
        if any(scores.clusters(checkpoint, SELECT, metric) for checkpoint in candidates):
            return metric, ""
        statuses = {status for checkpoint in candidates for status in scores.statuses(checkpoint, SELECT, metric)}
        # Prompts that a metric is not meant for explain nothing where others failed.
        statuses = {status for status in statuses if not status.startswith("not_applicable")} or statuses
        reasons.append(f"{metric} ({', '.join(sorted(statuses)) or 'no rows'})")
    return None, f"none of the metrics to choose by was measured: {'; '.join(reasons)}"


def _floors(
    scores: Scores, ranked: Sequence[Checkpoint], stage: ChoiceStage
) -> tuple[dict[Checkpoint, set[str]], tuple[str, ...]]:
    """The floors that each checkpoint misses, and those without a number: whose metric is null everywhere, or the base's is."""
    missed: dict[Checkpoint, set[str]] = {checkpoint: set() for checkpoint in ranked}
    unmeasured: list[str] = []
    for floor in _limits(scores, stage):
        values = {checkpoint: scores.mean(checkpoint, SELECT, floor.metric) for checkpoint in ranked}
        if floor.limit is None or all(value is None for value in values.values()):
            unmeasured.append(floor.name)
            continue
        for checkpoint, value in values.items():
            if not floor.is_kept(value):
                missed[checkpoint].add(floor.name)
    return missed, tuple(unmeasured)


def _keeping(
    ranked: tuple[Checkpoint, ...], missed: Mapping[Checkpoint, set[str]]
) -> tuple[tuple[Checkpoint, ...], tuple[str, ...]]:
    """The checkpoints that keep the floors, and the floors that are waived.

    A floor that every checkpoint misses tells none from another: it is waived alone, so that it does not take the others
    with it. Where no checkpoint keeps all the rest, none is applied.
    """
    by_all = set[str].intersection(*missed.values())
    kept = tuple(checkpoint for checkpoint in ranked if missed[checkpoint] <= by_all)
    waived = by_all if kept else set[str].union(*missed.values())
    return kept or ranked, tuple(sorted(waived))


class Floor(NamedTuple):
    """One floor: its key, its metric, the absolute limit (None where the base has no number), and whether it is a lower one."""

    name: str
    metric: str
    limit: float | None
    is_lower: bool

    def is_kept(self, value: float | None) -> bool:
        """Whether a mean keeps it; what was not measured does not."""
        if value is None or self.limit is None:
            return False
        return value >= self.limit if self.is_lower else value <= self.limit


def _limits(scores: Scores, stage: ChoiceStage) -> list[Floor]:
    """The configured floors."""
    choice = stage.choice
    diversity = scores.mean(BASE_CHECKPOINT, SELECT, "diversity")
    clip = scores.mean(BASE_CHECKPOINT, SELECT, "clip_score")
    share, loss = choice.min_diversity, choice.min_clip_score
    table: list[tuple[str, str, float | None, bool, float | None]] = [
        ("min_detected", "detected", choice.min_detected, True, choice.min_detected),
        ("max_bleed", "bleed_csim", choice.max_bleed, False, choice.max_bleed),
        ("min_diversity", "diversity", share, True, None if diversity is None or share is None else share * diversity),
        ("min_background_ssim", "background_ssim", choice.min_background_ssim, True, choice.min_background_ssim),
        ("min_clip_score", "clip_score", loss, True, None if clip is None or loss is None else clip * (1 - loss)),
        ("min_csim", "csim", choice.min_csim, True, choice.min_csim),
    ]
    return [Floor(name, metric, limit, lower) for name, metric, setting, lower, limit in table if setting is not None]


def finalists(ranking: Ranking, stage: ChoiceStage, candidates: Sequence[Checkpoint]) -> list[Checkpoint]:
    """The best by mean that keep the floors, the chosen one, and the one picked by hand, in order of rank.

    Raises UserError for a pick that no table knows.
    """
    wanted = set(ranking.allowed[: stage.finalists])
    wanted |= {checkpoint for checkpoint in (ranking.chosen, picked(stage, candidates)) if checkpoint}
    order = [*ranking.ranked, *(checkpoint for checkpoint in candidates if checkpoint not in ranking.ranked)]
    return [checkpoint for checkpoint in order if checkpoint in wanted]


def picked(stage: ChoiceStage, candidates: Sequence[Checkpoint]) -> Checkpoint | None:
    """The checkpoint of `pick:`, or None; raises UserError where there is no such checkpoint."""
    if stage.pick is None:
        return None
    pick = Checkpoint(stage.pick.variant, stage.pick.phase, stage.pick.step)
    if pick not in candidates:
        near = [str(checkpoint) for checkpoint in candidates if checkpoint.variant == pick.variant] or map(
            str, candidates
        )
        raise UserError(f"pick: there is no checkpoint {pick} in the scores. Allowed: {', '.join(near)}.")
    return pick


def recommended_scale(scores: Scores, checkpoint: Checkpoint, metric: str, stage: ChoiceStage) -> float:
    """The strength at which to use a checkpoint: the nearest to 1 within one standard error of the best, on the select half.

    Of the floors, those that the checkpoint keeps at strength 1 hold at every other one.
    """
    scales = sorted(
        {scale for found, split, scale, name in scores.groups if (found, split, name) == (checkpoint, SELECT, metric)}
    )
    floors = [one for one in _limits(scores, stage) if one.is_kept(scores.mean(checkpoint, SELECT, one.metric))]
    allowed = [
        scale
        for scale in scales
        if all(one.is_kept(scores.mean(checkpoint, SELECT, one.metric, scale)) for one in floors)
    ]
    means = {scale: scores.ranking_clusters(checkpoint, metric, scale) for scale in allowed}
    means = {scale: clusters for scale, clusters in means.items() if clusters}
    if not means:
        return 1.0
    sign = -1 if lower_is_better(metric) else 1
    best = max(means, key=lambda scale: (sign * sum(means[scale].values()) / len(means[scale]), -abs(scale - 1)))
    as_good = [scale for scale in means if _is_as_good(means[scale], means[best], sign, 1.0)]
    return min(as_good, key=lambda scale: (abs(scale - 1), scale))


def best_record(rows: Iterable[Row] | pa.Table, stage: ChoiceStage, calibration: Mapping[str, Any]) -> dict[str, Any]:
    """Make the content of best.json: the decision from the select half, the numbers from the report half.

    Without a choice `variant`, `phase` and `step` are null and `rule` says why.
    """
    scores = Scores(rows)
    ranking = rank(scores, stage)
    pick = picked(stage, scores.candidates)
    chosen = pick or ranking.chosen
    record: dict[str, Any] = {
        "variant": chosen.variant if chosen else None,
        "phase": chosen.phase if chosen else None,
        "step": chosen.step if chosen else None,
        "lora_scale": None,
        "lora_sha256": scores.sha256s[chosen] if chosen else None,
        "rule": _rule(ranking, stage, pick) + _whose_numbers(scores, chosen),
        "identity_metric": ranking.metric,
        "picked_by_hand": pick is not None,
        "metrics": {},
        "runners_up": [],
        "calibration": dict(calibration),
    }
    if chosen is None:
        return record
    scale = recommended_scale(scores, chosen, ranking.metric, stage) if ranking.metric else 1.0
    others = [other for other in finalists(ranking, stage, scores.candidates) if other != chosen]
    return record | {
        "lora_scale": scale,
        "metrics": reported(scores, chosen, scale),
        "runners_up": [_runner_up(scores, other) for other in others],
    }


def half_of(scores: Scores, checkpoint: Checkpoint) -> str:
    """The half that a checkpoint's numbers come from: the report half, or the other where a hand picked what was not drawn there."""
    is_drawn = any(scores.has(checkpoint, REPORT, metric) for metric in scores.metrics(REPORT))
    return REPORT if is_drawn else SELECT


def reported(scores: Scores, checkpoint: Checkpoint, scale: float = 1.0) -> dict[str, dict[str, Any]]:
    """The numbers of a checkpoint by metric on the half of `half_of`, at this strength or, where it was not drawn so, at 1.

    The identity metrics also carry `…_over_base`, the paired difference against the bare model.
    """
    split = half_of(scores, checkpoint)
    drawn = any(scores.has(checkpoint, split, metric, scale) for metric in scores.metrics(split))
    used = scale if drawn else 1.0
    result: dict[str, dict[str, Any]] = {}
    for metric in scores.metrics(split):
        found = scores.estimate(checkpoint, split, metric, used)
        if found:
            result[metric] = found._asdict()
        if metric in (*FACELESS_IS_ZERO, "target_error", "style_similarity"):
            ours = scores.clusters(checkpoint, split, metric, used)
            over_base = paired_difference(ours, scores.clusters(BASE_CHECKPOINT, split, metric))
            result |= {f"{metric}_over_base": over_base._asdict()} if over_base else {}
    return result


def _runner_up(scores: Scores, checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "variant": checkpoint.variant,
        "phase": checkpoint.phase,
        "step": checkpoint.step,
        "lora_sha256": scores.sha256s[checkpoint],
        "metrics": reported(scores, checkpoint),
    }


def _whose_numbers(scores: Scores, chosen: Checkpoint | None) -> str:
    """Words for numbers that are not the report half's."""
    if chosen is None or half_of(scores, chosen) == REPORT:
        return ""
    return "; its numbers are the select half's, since it was not drawn on the report half"


def _rule(ranking: Ranking, stage: ChoiceStage, pick: Checkpoint | None) -> str:
    """One or two sentences: how the checkpoint was found, and which floors could not be held against anything."""
    if ranking.metric is None or ranking.chosen is None:
        text = f"no choice: {ranking.reason}"
        return f"picked by hand ({pick}); otherwise {text}" if pick else text
    among = f"{len(ranking.ranked)} checkpoints"
    order = "lowest" if lower_is_better(ranking.metric) else "highest"
    text = (
        f"earliest of {among} within {stage.choice.standard_errors:g} standard error of the {order} {ranking.metric} "
        f"on the select half ({ranking.best})"
    )
    if ranking.waived:
        text += f"; not applied, since no checkpoint keeps all floors: {', '.join(ranking.waived)}"
    if len(ranking.allowed) < len(ranking.ranked):
        text += f"; {len(ranking.ranked) - len(ranking.allowed)} checkpoints missed a floor"
    if ranking.unmeasured:
        text += f"; floors without a measurement: {', '.join(ranking.unmeasured)}"
    if ranking.metric not in ("likeness", *METRICS_OF_RECIPE[stage.recipe][:1]):
        text += f"; {ranking.metric} stands in for {METRICS_OF_RECIPE[stage.recipe][0]}"
    return f"picked by hand ({pick}); the rule would take {ranking.chosen}: {text}" if pick else text
