"""What a second LoRA costs the first one's subject: the same images with one LoRA and with both, measured in pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from likeness.evaluation.draw import LoraFile
from likeness.evaluation.mix import Method, Mixture, MixtureDrawer
from likeness.evaluation.prompts import SELECT
from likeness.evaluation.score import BASE_ENTRY, Entry, Workplace, read_calibration
from likeness.evaluation.scores import FACELESS_IS_ZERO, Checkpoint, Scores
from likeness.evaluation.statistics import Estimate, paired_difference

ALONE, TOGETHER = Checkpoint("alone", "", 0), Checkpoint("together", "", 0)


class Loss(NamedTuple):
    """One metric with the LoRA alone and with both, and the paired difference, together minus alone."""

    metric: str
    alone: float
    together: float
    difference: Estimate


def measure_crosstalk(
    workplace: Workplace,
    own: LoraFile,
    other: LoraFile,
    base_folder: Path,
    subject: str,
    method: Method = "sum",
    words: Sequence[str] = (),
) -> list[Loss]:
    """Draw a subject's select half with its own LoRA and with both, and compare every metric that both have."""
    points = workplace.half(SELECT)
    calibration = read_calibration(base_folder)
    base_shots = workplace.draw([BASE_ENTRY], points)
    alone = workplace.draw([Entry(ALONE, own)], points)
    rows = workplace.rows(subject, alone, calibration, base_shots)
    mixture = Mixture(method, (other,), tuple(words))
    drawer = MixtureDrawer(workplace.stage, workplace.store, workplace.images, mixture)
    together = workplace.draw_with(drawer, [Entry(TOGETHER, own)], points)
    rows += workplace.rows(subject, together, calibration, base_shots)
    return losses(rows)


def losses(rows: Sequence[dict[str, Any]]) -> list[Loss]:
    """Every metric that was measured both ways; for identity a picture without a face counts 0."""
    scores, found = Scores(rows), []
    for metric in scores.metrics(SELECT):
        faceless = 0.0 if metric in FACELESS_IS_ZERO else None
        alone, together = (scores.clusters(one, SELECT, metric, 1.0, faceless) for one in (ALONE, TOGETHER))
        difference = paired_difference(together, alone)
        if difference is not None:
            shared = alone.keys() & together.keys()
            means = [sum(of[cluster] for cluster in shared) / len(shared) for of in (alone, together)]
            found.append(Loss(metric, means[0], means[1], difference))
    return found
