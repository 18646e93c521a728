"""What two LoRAs cost each other: shared directions by module, and each subject's images with one LoRA and with both.

Images of one subject share prompts, seeds and noise, so what its metrics lose when the other LoRA is on is a paired
difference. Where the other LoRA is another subject's, that subject's prompts are drawn as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from likeness.config.surgery import Crosstalk
from likeness.evaluation.mix import Mixture, MixtureDrawer
from likeness.evaluation.parents import Found
from likeness.evaluation.prompts import SELECT
from likeness.evaluation.score import BASE_ENTRY, Entry, Row, Shot, Workplace, row_label
from likeness.evaluation.scores import FACELESS_IS_ZERO, Checkpoint, Scores
from likeness.evaluation.sheet import write_sheet
from likeness.evaluation.statistics import Estimate, paired_difference
from likeness.locks import writing
from likeness.program import as_about
from likeness.tables import write_table
from likeness.tables_surgery import CROSSTALK, OVERLAPS

VERSION = 1
ALONE, TOGETHER = Checkpoint("alone", "", 0), Checkpoint("together", "", 0)


class Loss(NamedTuple):
    """One metric with the LoRA alone and with both, and the paired difference, together minus alone."""

    metric: str
    alone: float
    together: float
    difference: Estimate


@dataclass(frozen=True)
class Side:
    """One subject of a pair: its workplace, the folder that score_base wrote, its own LoRA and the one beside it."""

    subject: str
    workplace: Workplace
    base_folder: Path
    own: Found
    other: Found
    mixture: Mixture


def sides_of(
    crosstalk: Crosstalk,
    pair: tuple[Found, Found],
    subjects: Sequence[str],
    workplaces: Sequence[Workplace],
    base_folders: Sequence[Path],
) -> list[Side]:
    """The subjects by whose metrics a pair is measured, in order; the second one sees the pair from the other end."""
    triggers = [workplace.stage.trigger for workplace in workplaces]
    words = (triggers[0], crosstalk.word or triggers[-1]) if crosstalk.method == "masked" else ()
    sides = []
    for place, (subject, workplace, folder) in enumerate(zip(subjects, workplaces, base_folders, strict=True)):
        own, other = pair if place == 0 else pair[::-1]
        seen = words if place == 0 else words[::-1]
        mixture = Mixture(crosstalk.method, (other.lora,), seen, crosstalk.method == "k-lora" and place > 0)
        sides.append(Side(subject, workplace, folder, own, other, mixture))
    return sides


def measure_crosstalk(
    name: str, crosstalk: Crosstalk, sides: Sequence[Side], losses: Path, overlaps: Path
) -> list[Row]:
    """Write the tables of losses and of overlaps, and a sheet of the images beside them; returns the losses' rows.

    Raises UserError for LoRAs of different base models, and for what the method cannot mix.
    """
    from likeness.lora.crosstalk import overlaps as overlaps_of
    from likeness.lora.files import open_lora

    about = as_about("crosstalk", VERSION, crosstalk)
    shared = overlaps_of(open_lora(sides[0].own.lora.path), open_lora(sides[0].other.lora.path))
    rows: list[Row] = []
    cells: dict[tuple[str, str], str] = {}
    for side in sides:
        found, shots = losses_of(side)
        rows += [_row(name, crosstalk.method, side, loss) for loss in found]
        cells |= {(f"{side.subject} {row_label(shot)}", shot.entry.checkpoint.variant): shot.sha256 for shot in shots}
    with writing(losses.parent):
        columns, lines = (list(dict.fromkeys(place[axis] for place in cells)) for axis in (1, 0))
        write_sheet(losses.parent / "sheet.jpg", lines, columns, cells, sides[0].workplace.store)
        write_table(overlaps, OVERLAPS, [one._asdict() for one in shared], about)
        write_table(losses, CROSSTALK, rows, about)
    return rows


def losses_of(side: Side) -> tuple[list[Loss], list[Shot]]:
    """Draw a subject's select half bare, with its own LoRA and with both; every metric that both have, and the images."""
    workplace, points = side.workplace, side.workplace.half(SELECT)
    calibration = workplace.calibration(side.base_folder)
    base_shots = workplace.draw([BASE_ENTRY], points)
    alone = workplace.draw([Entry(ALONE, side.own.lora)], points)
    rows = workplace.rows(side.subject, alone, calibration, base_shots)
    drawer = MixtureDrawer(workplace.stage, workplace.store, workplace.images, side.mixture)
    together = workplace.draw_with(drawer, [Entry(TOGETHER, side.own.lora)], points)
    rows += workplace.rows(side.subject, together, calibration, base_shots)
    return losses_between(rows), [*base_shots, *alone, *together]


def losses_between(rows: Sequence[Row]) -> list[Loss]:
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


def _row(name: str, method: str, side: Side, loss: Loss) -> Row:
    about: dict[str, Any] = {
        "subject": side.subject,
        "crosstalk": name,
        "own": side.own.text,
        "own_sha256": side.own.lora.sha256,
        "other": side.other.text,
        "other_sha256": side.other.lora.sha256,
        "base_model": side.workplace.drawer.fingerprint,
        "method": method,
    }
    value, low, high, n = loss.difference
    numbers = {"alone": loss.alone, "together": loss.together, "difference": value, "low": low, "high": high, "n": n}
    return about | {"metric": loss.metric} | numbers
