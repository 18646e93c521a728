"""What the report says of surgery: every candidate with its parents, and what the ablations found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from likeness.evaluation.blocks import IMAGE_CHANGE, choose_blocks
from likeness.evaluation.prompts import SELECT
from likeness.evaluation.scores import FACELESS_IS_ZERO, Checkpoint
from likeness.evaluation.statistics import paired_difference
from likeness.klein.targets import targets_of_blocks
from likeness.report.gather import Subject
from likeness.report.heatmap import HeatMap, draw_heat_map, heat_map
from likeness.report.numbers import Measured, estimated, label_of, measured_from, spelled

MOST_TARGETS = 8


@dataclass(frozen=True)
class Operated:
    """One candidate: what was done to which parents, its own number, and the paired difference to its first parent."""

    name: str
    method: str
    parents: tuple[str, ...]
    ranks: str
    measured: Measured | None
    over_parent: Measured | None
    is_chosen: bool


@dataclass(frozen=True)
class Ablated:
    """One ablation: its heat maps, and the targets that follow from it (empty where no block stands out)."""

    name: str
    parent: str
    maps: tuple[tuple[str, Markup], ...]
    targets: str


def operated(subject: Subject, metric: str | None) -> list[Operated]:
    """Every candidate by name; numbers are of the ranking metric on the select half."""
    found = []
    for name, entry in subject.operations.items():
        checkpoint = Checkpoint(name, "surgery", 0)
        measured = estimated(subject.name, subject.scores, checkpoint, SELECT, metric) if metric else None
        found.append(
            Operated(
                name=name,
                method=method_of(entry),
                parents=tuple(labels_of_parents(entry["parents"])),
                ranks=ranks_of(entry["ranks"]),
                measured=measured,
                over_parent=over_parent(subject, checkpoint, entry["parents"][0], metric) if metric else None,
                is_chosen=checkpoint == subject.chosen,
            )
        )
    return found


def method_of(entry: Mapping[str, Any]) -> str:
    """The method with what was set, in words."""
    about = {key: text for key, text in entry["about"].items() if key != "operation"}
    return ", ".join([entry["method"], *(f"{key} {text}" for key, text in about.items())])


def ranks_of(ranks: Mapping[str, int]) -> str:
    """`8`, or `4 to 16` where modules differ."""
    numbers = sorted(map(int, ranks))
    return "" if not numbers else f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


def over_parent(subject: Subject, ours: Checkpoint, parent: Mapping[str, Any], metric: str) -> Measured | None:
    """Paired difference to a parent that stands in the score table, over clusters of the select half."""
    if "variant" not in parent:
        return None
    theirs = Checkpoint(parent["variant"], parent["phase"], parent["step"])
    faceless = 0.0 if metric in FACELESS_IS_ZERO else None
    of_ours, of_theirs = (subject.scores.clusters(one, SELECT, metric, 1.0, faceless) for one in (ours, theirs))
    found = paired_difference(of_ours, of_theirs)
    if found is None:
        return None
    about = (
        ("source", "pairs"),
        ("subject", subject.name),
        ("checkpoint", spelled(ours)),
        ("against", spelled(theirs)),
    )
    return measured_from(
        found, (*about, ("metric", metric), ("split", SELECT), ("base-model", subject.scores.base_model))
    )


def ablated(subject: Subject, metric: str | None) -> list[Ablated]:
    """Heat maps of the ranking metric and of the plain change of the image, out and in."""
    found = []
    for name, rows in subject.ablations.items():
        maps: list[HeatMap] = []
        for wanted in [*([metric] if metric else []), IMAGE_CHANGE]:
            for mode in ("knock-out", "knock-in"):
                made = heat_map(subject.name, name, rows, mode, wanted)
                maps += [made] if made else []
        measured = {row["metric"] for row in rows}
        chosen = choose_blocks(rows, metric, MOST_TARGETS) if metric in measured and metric else []
        found.append(
            Ablated(
                name,
                rows[0]["parent"] if rows else "",
                tuple((one.caption, draw_heat_map(one)) for one in maps),
                targets_of_blocks(chosen) if chosen else "",
            )
        )
    return found


def labels_of_parents(parents: Sequence[Mapping[str, Any]]) -> list[str]:
    """Parents as people read them."""
    return [
        label_of(Checkpoint(one["variant"], one["phase"], one["step"])) if "variant" in one else one["name"]
        for one in parents
    ]
