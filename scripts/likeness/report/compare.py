"""The same prompts, seeds and noise drawn by the base, the chosen checkpoint and the runners-up."""

from __future__ import annotations

from dataclasses import dataclass

from likeness.evaluation.prompts import REPORT
from likeness.report.gather import Row, Subject
from likeness.report.pictures import Wanted
from likeness.report.score_tables import Column, report_columns

IMAGE_PX = 256
MOST_ROWS = 8
MOST_COLUMNS = 4


@dataclass(frozen=True)
class ComparedRow:
    """One prompt and seed: for an edit what it started from and should become, then one image a column."""

    prompt: str
    seed: int
    given: tuple[Wanted | None, ...]
    images: tuple[Wanted | None, ...]


@dataclass(frozen=True)
class Comparison:
    """`given` names the pictures of a pair, `columns` the checkpoints."""

    given: tuple[str, ...]
    columns: list[Column]
    rows: list[ComparedRow]

    def wanted(self) -> list[Wanted]:
        """All pictures, row by row."""
        return [one for row in self.rows for one in (*row.given, *row.images) if one is not None]


def comparison(subject: Subject) -> Comparison | None:
    """Images of the report half; None where nothing was chosen or drawn there."""
    if subject.chosen is None:
        return None
    columns = shown_columns(report_columns(subject))
    images: dict[tuple[Column, str, int], Row] = {}
    for row in subject.rows:
        if row["split"] != REPORT or row["base_model"] != subject.scores.base_model:
            continue
        for column in columns:
            if (column.checkpoint.variant, column.checkpoint.phase, column.checkpoint.step, column.scale) == (
                row["variant"],
                row["phase"],
                row["step"],
                row["lora_scale"],
            ):
                images[column, row["prompt_id"], row["seed"]] = row
    places = places_of({(prompt, seed) for column, prompt, seed in images if not column.is_base})
    files = {photo.name: dict(photo.files) for photo in subject.photos}
    given = ("source", "target") if subject.recipe == "edit" else ()
    rows = []
    for prompt, seed in places[:MOST_ROWS]:
        found = [images.get((column, prompt, seed)) for column in columns]
        text = next(row["prompt"] for row in found if row is not None)
        paths = [files.get(prompt, {}).get(role) for role in given]
        rows.append(
            ComparedRow(
                text,
                seed,
                tuple(Wanted(IMAGE_PX, path) if path else None for path in paths),
                tuple(Wanted(IMAGE_PX, sha256=row["image"]) if row else None for row in found),
            )
        )
    return Comparison(given, columns, rows) if rows else None


def shown_columns(columns: list[Column]) -> list[Column]:
    """One column a checkpoint: the chosen one at its recommended strength only."""
    first = {column.checkpoint: column for column in reversed(columns)}
    return [column for column in columns if first[column.checkpoint] is column][:MOST_COLUMNS]


def places_of(drawn: set[tuple[str, int]]) -> list[tuple[str, int]]:
    """Prompts and seeds in order of showing: every prompt once before any is shown with another seed."""
    seeds: dict[str, list[int]] = {}
    for prompt, seed in sorted(drawn):
        seeds.setdefault(prompt, []).append(seed)
    return sorted(drawn, key=lambda place: (seeds[place[0]].index(place[1]), place[0]))
