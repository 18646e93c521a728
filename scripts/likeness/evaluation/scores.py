"""Score tables, ready to be asked for one checkpoint's numbers: grouped once, by columns, and summed only where asked.

A sweep has a million rows and a choice looks at a part of them, so rows are never turned into Python objects as a whole:
a group is a slice of one order of the rows, and only the groups that are asked for are read.

Axes: N rows.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from likeness.config.metrics import RANGES
from likeness.config.surgery import SURGERY
from likeness.evaluation.statistics import Estimate, cluster_means, estimate, within
from likeness.tables import SCORES, TEXT, read_table

BASE = "base"
SELECT = "select"
FACELESS_IS_ZERO = frozenset({"likeness", "csim", "descriptor_cosine"})
"""Metrics by which an image without a face is worth 0 while candidates are ranked; in tables it stays null."""
GROUPED_BY = ("variant", "phase", "step", "split", "lora_scale", "metric")
NAMED = (*GROUPED_BY, "lora_sha256", "prompt_id", "source_id", "status")
READ = (*NAMED, "base_model", "value")

MOST_NUMBERS = 1 << 20
"""Numbers of groups beyond which they are closed up, so that they stay small whatever columns come together."""

Row = Mapping[str, Any]


class Checkpoint(NamedTuple):
    """Identity of a checkpoint in tables."""

    variant: str
    phase: str
    step: int

    def __str__(self) -> str:
        return f"{self.variant}/{self.phase}/{self.step}" if self.phase else f"{self.variant}/{self.step}"


BASE_CHECKPOINT = Checkpoint(BASE, "", 0)
Group = tuple[Checkpoint, str, float, str]


def read_scores(paths: Iterable[Path]) -> pa.Table:
    """The columns of score tables that numbers are made from, one table after the other."""
    texts = [column.name for column in SCORES.columns if column.type == TEXT]
    tables = [read_table(path, SCORES, READ, as_codes=texts).replace_schema_metadata(None) for path in paths]
    return pa.concat_tables(tables)


class Scores:
    """Score rows by checkpoint, split, strength and metric; `base_model` is the one that training used.

    Rows are dictionaries or a table that holds at least the columns of READ. `groups` maps each group to its place in
    the order of rows; it is in order of first appearance.
    """

    def __init__(self, rows: Iterable[Row] | pa.Table) -> None:
        given: Any = rows if isinstance(rows, pa.Table) else table_of_rows(rows)
        table = given.unify_dictionaries()
        models = model_counts(table)
        self.base_model = max(sorted(models), key=lambda name: models[name], default="")
        if len(models) > 1:
            table = table.filter(pc.field("base_model").cast(TEXT) == self.base_model)
        self._codes: dict[str, NDArray[np.int64]] = {}
        self._names: dict[str, list[Any]] = {}
        for name in NAMED:
            column = table[name].combine_chunks()
            column = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
            self._codes[name] = column.indices.to_numpy()
            self._names[name] = column.dictionary.to_pylist()
        self._values = table["value"].to_numpy()
        self._is_null = table["value"].is_null().to_numpy()
        self._lowest_values: dict[str, float] = {}
        self._group()

    def _group(self) -> None:
        """Order the rows by group and note where each begins, and what stands in them first."""
        group_N, count = np.zeros(len(self._values), np.int64), 1
        for name in GROUPED_BY:
            group_N *= len(self._names[name])
            group_N += self._codes[name]
            count *= len(self._names[name])
            if count > MOST_NUMBERS or name == GROUPED_BY[-1]:
                group_N, count = dense(group_N)
        self._order = np.argsort(group_N.astype(np.min_scalar_type(count)), kind="stable")
        ends_G = np.cumsum(np.bincount(group_N, minlength=count))
        starts_G = np.concatenate([np.zeros(1, np.int64), ends_G[:-1]])[:count]
        first_G = self._order[starts_G]
        by_appearance = np.argsort(first_G, kind="stable")
        first_G = first_G[by_appearance]
        columns = [self._at(name, first_G) for name in (*GROUPED_BY, "lora_sha256")]
        variants, phases, steps, *others, sha256s = columns
        names = zip(variants, phases, steps, strict=True)
        # Groups of one checkpoint share its object: the garbage collector walks through all there are, again and again.
        known = {name: Checkpoint(*name) for name in dict.fromkeys(names)}
        checkpoints = [known[name] for name in zip(variants, phases, steps, strict=True)]
        slices = map(slice, starts_G[by_appearance].tolist(), ends_G[by_appearance].tolist())
        self.groups: dict[Group, slice] = dict(zip(zip(checkpoints, *others, strict=True), slices, strict=True))
        self.sha256s: dict[Checkpoint, str] = dict(zip(checkpoints[::-1], sha256s[::-1], strict=True))
        self.sha256s = {checkpoint: self.sha256s[checkpoint] for checkpoint in known.values()}
        self.variant_order = list(dict.fromkeys(checkpoint.variant for checkpoint in self.sha256s))
        self.phase_order: dict[str, list[str]] = {variant: [] for variant in self.variant_order}
        for variant, phase in dict.fromkeys((one.variant, one.phase) for one in self.sha256s):
            self.phase_order[variant].append(phase)

    def _at(self, name: str, rows: NDArray[np.int64]) -> list[Any]:
        names = self._names[name]
        return [names[code] for code in self._codes[name][rows].tolist()]

    @property
    def candidates(self) -> list[Checkpoint]:
        """All checkpoints but the base, earliest first: by place of the phase in its variant, by step, by variant.

        What surgery made is later than everything it could be made of.
        """
        return sorted((checkpoint for checkpoint in self.sha256s if checkpoint.variant != BASE), key=self._age)

    def _age(self, checkpoint: Checkpoint) -> tuple[bool, int, int, int]:
        phase = self.phase_order[checkpoint.variant].index(checkpoint.phase)
        place = self.variant_order.index(checkpoint.variant)
        return (checkpoint.phase == SURGERY, phase, checkpoint.step, place)

    def metrics(self, split: str) -> list[str]:
        return self._metrics.get(split, [])

    @cached_property
    def _metrics(self) -> dict[str, list[str]]:
        """The metrics of each split, by name."""
        found: dict[str, list[str]] = {}
        for split, metric in sorted({(split, metric) for _, split, _, metric in self.groups}):
            found.setdefault(split, []).append(metric)
        return found

    def has(self, checkpoint: Checkpoint, split: str, metric: str, scale: float = 1.0) -> bool:
        """Whether there are rows of this group, measured or not."""
        return (checkpoint, split, scale, metric) in self.groups

    def statuses(self, checkpoint: Checkpoint, split: str, metric: str, scale: float = 1.0) -> set[str]:
        """What the rows of a group say of themselves: ok, no_face, no_weights: …"""
        rows = self._rows(checkpoint, split, metric, scale)
        return set(self._at("status", rows))

    def _rows(self, checkpoint: Checkpoint, split: str, metric: str, scale: float) -> NDArray[np.int64]:
        return self._order[self.groups.get((checkpoint, split, scale, metric), slice(0, 0))]

    def clusters(
        self, checkpoint: Checkpoint, split: str, metric: str, scale: float = 1.0, faceless: float | None = None
    ) -> dict[Hashable, float]:
        """Cluster means of measured values; with `faceless`, images without a face count as that."""
        rows = self._rows(checkpoint, split, metric, scale)
        values, missing = self._values[rows], self._is_null[rows]
        if faceless is not None and missing.any():
            no_face = missing & np.array([status == "no_face" for status in self._at("status", rows)], bool)
            values, missing = np.where(no_face, faceless, values), missing & ~no_face
        kept = rows[~missing]
        named = zip(self._at("source_id", kept), self._at("prompt_id", kept), values[~missing].tolist(), strict=True)
        return cluster_means((source or prompt, prompt, value) for source, prompt, value in named)

    def ranking_clusters(self, checkpoint: Checkpoint, metric: str, scale: float = 1.0) -> dict[Hashable, float]:
        """Cluster means on the select half, images without a face among them where the metric is one of identity."""
        faceless = min(0.0, self._lowest(metric)) if metric in FACELESS_IS_ZERO else None
        return self.clusters(checkpoint, SELECT, metric, scale, faceless)

    def _lowest(self, metric: str) -> float:
        """The lowest value of a metric that any image of the select half has; 0 where none has one."""
        if metric not in self._lowest_values:
            groups = [rows for (_, split, _, name), rows in self.groups.items() if (split, name) == (SELECT, metric)]
            values = [self._values[own][~self._is_null[own]] for own in (self._order[rows] for rows in groups)]
            self._lowest_values[metric] = min((float(one.min()) for one in values if one.size), default=0.0)
        return self._lowest_values[metric]

    def mean(self, checkpoint: Checkpoint, split: str, metric: str, scale: float = 1.0) -> float | None:
        means = self.clusters(checkpoint, split, metric, scale)
        return sum(means.values()) / len(means) if means else None

    def estimate(self, checkpoint: Checkpoint, split: str, metric: str, scale: float = 1.0) -> Estimate | None:
        """Mean and interval over clusters, the interval within what the metric can be; None where nothing was measured."""
        means = self.clusters(checkpoint, split, metric, scale)
        return within(estimate(list(means.values())), *RANGES.get(metric, (None, None))) if means else None


def table_of_rows(rows: Iterable[Row]) -> pa.Table:
    """Rows as a table of the columns that are read."""
    types = {column.name: column.type for column in SCORES.columns}
    schema = pa.schema([(name, types[name]) for name in READ])
    return pa.Table.from_pylist([{name: row.get(name) for name in READ} for row in rows], schema=schema)


def model_counts(table: Any) -> dict[str, int]:
    """How many rows each base model has; those of a distilled model, drawn by finalists only, are always fewer."""
    return {entry["values"]: entry["counts"] for entry in table["base_model"].value_counts().to_pylist()}


def dense(numbers_N: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """Renumber from 0 without gaps, keeping the order; also how many numbers there are."""
    is_there = np.zeros(int(numbers_N.max(initial=-1)) + 1, bool)
    is_there[numbers_N] = True
    return (np.cumsum(is_there) - 1)[numbers_N], int(is_there.sum())
