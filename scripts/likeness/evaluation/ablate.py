"""Which blocks of a LoRA do the work: every block weighted down alone (knock-out), and every block used alone (knock-in).

The two disagree where blocks stand in for each other, so both are measured. All images share prompts, seeds and noise
with the whole LoRA's and the bare base's, so differences are paired; intervals are corrected for the number of blocks.
Weights are set at run time, and images are items of the store: a finer grid of weights costs its own images only.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from likeness.config.surgery import Ablation
from likeness.errors import UserError, nearest
from likeness.evaluation.blocks import IMAGE_CHANGE, KNOCK_OUT, effect_of
from likeness.evaluation.draw import read_checked
from likeness.evaluation.parents import Found
from likeness.evaluation.prompts import SELECT, GridPoint
from likeness.evaluation.score import BASE_ENTRY, Entry, Row, Shot, Workplace, row_label
from likeness.evaluation.scores import Checkpoint, Scores
from likeness.evaluation.sheet import write_sheet
from likeness.evaluation.statistics import Tested, cluster_means, holm_tested
from likeness.lora.blocks import OTHER, adapted_blocks, blocks_of, norm_shares
from likeness.program import as_about
from likeness.store import item_key
from likeness.tables import write_table
from likeness.tables_surgery import ABLATION

VERSION = 1
STAGE = "image-change"

Clusters = dict[str, dict[Hashable, float]]
"""Cluster means by metric."""
Pairs = dict[Hashable, tuple[float, float]]
"""(value, value of the reference) by cluster."""


@dataclass(frozen=True)
class Setting:
    """One block at one weight, with the other blocks at 1 (knock-out) or at 0 (knock-in)."""

    mode: str
    block: str
    weight: float

    def entry(self, full: Entry, adapted: Iterable[str]) -> Entry:
        """What to draw; the whole LoRA or the base itself where the weights come down to that."""
        others = 1.0 if self.mode == KNOCK_OUT else 0.0
        weights = {block: self.weight if block == self.block else others for block in adapted}
        if not any(weights.values()):
            return BASE_ENTRY
        return Entry(full.checkpoint, full.lora, tuple((block, at) for block, at in weights.items() if at != 1))


@dataclass(frozen=True)
class Anatomy:
    """The blocks of a model, and for each how many modules a LoRA has there and its share of the squared norm."""

    blocks: tuple[str, ...]
    modules: Mapping[str, int]
    shares: Mapping[str, float]


class Measurements:
    """The images of all entries at the same points, and their cluster means by metric."""

    def __init__(self, workplace: Workplace, entries: Iterable[Entry], base_folder: Path, subject: str) -> None:
        self.workplace, self.subject = workplace, subject
        self.entries = list(dict.fromkeys([BASE_ENTRY, *entries]))
        self.calibration = workplace.calibration(base_folder)
        self.shots: dict[Entry, list[Shot]] = {}
        self.means: dict[Entry, Clusters] = {}

    def measure(self, points: Sequence[GridPoint]) -> None:
        """Draw everything in one go, then measure."""
        for shot in self.workplace.draw(self.entries, points):
            self.shots.setdefault(shot.entry, []).append(shot)
        for entry, shots in self.shots.items():
            rows = self.workplace.rows(self.subject, shots, self.calibration, self.shots[BASE_ENTRY])
            scores = Scores(rows)
            means = {name: scores.ranking_clusters(entry.checkpoint, name) for name in scores.metrics(SELECT)}
            self.means[entry] = {name: clusters for name, clusters in means.items() if clusters}

    def compared(self, entry: Entry, reference: Entry) -> Iterator[tuple[str, Pairs]]:
        """Each metric that both have of some cluster, with (value, value of the reference) by cluster."""
        ours, theirs = self.means[entry], self.means[reference]
        for metric in sorted(ours.keys() & theirs.keys()):
            shared = [cluster for cluster in ours[metric] if cluster in theirs[metric]]
            if shared:
                yield metric, {cluster: (ours[metric][cluster], theirs[metric][cluster]) for cluster in shared}
        yield IMAGE_CHANGE, {cluster: (value, 0.0) for cluster, value in self._image_change(entry, reference).items()}

    def _image_change(self, entry: Entry, reference: Entry) -> dict[Hashable, float]:
        against = {shot.request.point: shot.sha256 for shot in self.shots[reference]}
        triples = []
        for shot in self.shots[entry]:
            point = shot.request.point
            triples.append((point.source_id or point.prompt_id, point.prompt_id, self._change(shot, against[point])))
        return cluster_means(triples)

    def _change(self, shot: Shot, against: str) -> float:
        """Mean absolute difference of two drawn images, 0..1, as a stored item."""
        if shot.sha256 == against:
            return 0.0
        pictures, store = self.workplace.pictures, self.workplace.store

        def compute() -> tuple[dict[str, Any], dict[str, bytes]]:
            ours_HWC, theirs_HWC = pictures.raw(shot.sha256), pictures.raw(against)
            change = np.abs(ours_HWC.astype(np.float64) - theirs_HWC).mean() / 255
            return {"change": float(change)}, {}

        key = item_key(STAGE, VERSION, None, "", sorted([shot.sha256, against]))
        return store.load_or_compute(STAGE, key, compute).record["change"]


def ablate_lora(
    workplace: Workplace, ablation: Ablation, parent: Found, base_folder: Path, subject: str, output: Path
) -> list[Row]:
    """Draw and measure a LoRA's blocks on the select half; write the table and, beside it, a sheet of the knock-outs.

    Returns the rows. Raises UserError for prompts that are not drawn on the select half, and for a LoRA that does not
    fit the model.
    """
    lora, layout = read_checked(parent.lora, workplace.drawer.layout), workplace.drawer.layout
    modules = adapted_blocks(lora)
    anatomy = Anatomy((*blocks_of(layout), *([OTHER] if OTHER in modules else [])), modules, norm_shares(lora))
    full = Entry(parent.checkpoint or Checkpoint("file", "", 0), parent.lora)
    settings = [
        Setting(mode, block, weight)
        for mode in ablation.modes
        for weight in ablation.weights
        for block in anatomy.blocks
    ]
    drawn = {setting: setting.entry(full, modules) for setting in settings}
    found = Measurements(workplace, [full, *drawn.values()], base_folder, subject)
    found.measure(points_of(workplace, ablation))
    common = {
        "subject": subject,
        "ablation": output.stem,
        "parent": parent.text,
        "lora_sha256": parent.lora.sha256,
        "base_model": workplace.drawer.fingerprint,
    }
    rows = [
        common | row
        for mode in ablation.modes
        for weight in ablation.weights
        for row in _family(mode, weight, drawn, full, found, anatomy)
    ]
    write_table(output, ABLATION, rows, as_about("ablation", VERSION, ablation))
    _write_sheet(found, full, drawn, output.with_suffix(".jpg"))
    return rows


def points_of(workplace: Workplace, ablation: Ablation) -> list[GridPoint]:
    """The select half's images, or those of the chosen prompts; UserError for a prompt that is not among them."""
    points = workplace.half(SELECT)
    known = {point.prompt_id for point in points}
    for prompt in ablation.prompts:
        if prompt not in known:
            raise UserError(f"ablation.prompts: {prompt!r} is not drawn on the select half. {nearest(prompt, known)}")
    return [point for point in points if not ablation.prompts or point.prompt_id in ablation.prompts]


def _family(
    mode: str, weight: float, drawn: Mapping[Setting, Entry], full: Entry, found: Measurements, anatomy: Anatomy
) -> Iterator[Row]:
    """Rows of one mode and weight: for each metric the blocks are one family of tests.

    Blocks without modules are no hypotheses: their difference is 0 by construction, and they do not widen intervals.
    """
    reference = full if mode == KNOCK_OUT else BASE_ENTRY
    pairs: dict[str, dict[str, Pairs]] = {}
    for block in anatomy.blocks:
        for metric, values in found.compared(drawn[Setting(mode, block, weight)], reference):
            pairs.setdefault(metric, {})[block] = values
    for metric, by_block in pairs.items():
        differences = {block: [ours - theirs for ours, theirs in by_block[block].values()] for block in by_block}
        tested = holm_tested({block: differences[block] for block in by_block if block in anatomy.modules})
        means = {block: _means_of(values) for block, values in by_block.items()}
        effects = {block: effect_of(metric, mode, *means[block]) for block in by_block}
        order = sorted(by_block, key=lambda block: (-effects[block], anatomy.blocks.index(block)))
        for place, block in enumerate(order, 1):
            yield {
                "mode": mode,
                "block": block,
                "weight": weight,
                "metric": metric,
                "modules": anatomy.modules.get(block, 0),
                "norm_share": anatomy.shares.get(block, 0.0),
                "value": means[block][0],
                "reference": means[block][1],
                "effect": effects[block],
                "rank": place,
                **_numbers(tested.get(block), differences[block]),
            }


def _numbers(tested: Tested | None, differences: Sequence[float]) -> Row:
    if tested is None:
        value = math.fsum(differences) / len(differences)
        return {"difference": value, "low": value, "high": value, "n": len(differences), "p": None, "p_holm": None}
    return {
        "difference": tested.value,
        "low": tested.low,
        "high": tested.high,
        "n": tested.n,
        "p": tested.p,
        "p_holm": tested.p_holm,
    }


def _means_of(values: Pairs) -> tuple[float, float]:
    ours, theirs = zip(*values.values(), strict=True)
    return math.fsum(ours) / len(ours), math.fsum(theirs) / len(theirs)


def _write_sheet(found: Measurements, full: Entry, drawn: Mapping[Setting, Entry], path: Path) -> None:
    """The whole LoRA, the base, and every adapted block at the lowest weight that was knocked out."""
    lowest = min((setting.weight for setting in drawn if setting.mode == KNOCK_OUT), default=None)
    columns = {"whole": full, "base": BASE_ENTRY}
    columns |= {
        f"without {setting.block}" if not setting.weight else f"{setting.block} at {setting.weight:g}": entry
        for setting, entry in drawn.items()
        if setting.mode == KNOCK_OUT and setting.weight == lowest and entry != full
    }
    cells = {
        (row_label(shot), name): shot.sha256 for name, entry in columns.items() for shot in found.shots.get(entry, [])
    }
    write_sheet(path, list(dict.fromkeys(row for row, _ in cells)), list(columns), cells, found.workplace.store)
