"""Ask a phase's SQL over the samples, and nothing else: one condition, one order, no files, no chance, no clock.

The text comes from a config that people share, so DuckDB runs with external access off and its configuration locked,
and the parsed text must be one expression over the columns of one table: statements, subqueries and functions whose
answer may differ from call to call are refused with a message for people.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from likeness.errors import UserError, nearest
from likeness.sql import Node, columns_of, conjuncts, gist, read_condition, read_order, walk, written

LOCK = (
    "SET python_enable_replacements = false",
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET enable_external_access = false",
    "SET lock_configuration = true",
)
CLOCKS = frozenset(
    {"age", "current_localtime", "current_localtimestamp", "pg_conf_load_time", "pg_postmaster_start_time"}
)
"""Functions that read the clock though DuckDB's catalogue calls them, or one of their forms, consistent."""


@dataclass(frozen=True)
class Answer:
    """What a condition says of one sample: whether it holds and, if not, the first part of it that does not.

    failed: that part as SQL. value and threshold: its two sides, where it compares a number with a constant.
    """

    holds: bool
    failed: str = ""
    value: float | None = None
    threshold: float | None = None


class SampleQuery:
    """The columns of samples as one in-memory table that answers conditions and orders."""

    def __init__(self, samples: Sequence[Mapping[str, Any]], schema: pa.Schema) -> None:
        self.columns = schema.names
        types = dict(zip(self.columns, schema.types, strict=True))
        columns = [pa.array([row[name] for row in samples], type_) for name, type_ in types.items()]
        rows = pa.table([pa.array(range(len(samples)), pa.int64()), *columns], names=["_row", *types])
        self.connection = duckdb.connect(":memory:", config={"threads": 1})
        self.connection.register("arrow_rows", rows)
        self.connection.execute("CREATE TABLE samples AS SELECT * FROM arrow_rows")
        self.connection.unregister("arrow_rows")
        self.changing = {
            str(name)
            for (name,) in self.connection.execute(
                "SELECT DISTINCT function_name FROM duckdb_functions() WHERE stability IN ('VOLATILE', 'CONSISTENT_WITHIN_QUERY')"
            ).fetchall()
        }
        self.changing |= CLOCKS
        for command in LOCK:
            self.connection.execute(command)

    def answers(self, condition: str, place: str) -> list[Answer]:
        """Say for each sample, in the given order, whether the condition holds; a null counts as no.

        place: the key in the config, for errors. Raises UserError for anything but one condition over the columns.
        """
        where = read_condition(condition, place)
        self._check(where, condition, place)
        parts = conjuncts(where)
        texts = [written(part) for part in parts]
        sides = [self._sides(part) for part in parts]
        chosen = [text for text, pair in zip(texts, sides, strict=True) for text in (f"({text})", *pair)]
        rows = self._run(f"SELECT ({written(where)}), {', '.join(chosen)} FROM samples ORDER BY _row", condition, place)
        kinds = [str(column[1]) for column in self.connection.description or []]
        if kinds and kinds[0] != "BOOLEAN":
            raise UserError(f"{place}: {condition!r} gives {kinds[0]}, not true or false. Compare it with something.")
        return [_answer(row, texts) for row in rows]

    def ordered(self, order_by: str, place: str, ties: str = "sha256, sample_id, id") -> list[int]:
        """Positions of all samples in this order; `ties` are columns that break ties, `_row` the place given here.

        The picture breaks them first: the sample id hangs on the caption too, whose edit would exchange samples.

        Raises UserError for anything but expressions that may stand after SQL's ORDER BY.
        """
        for order in read_order(order_by, place):
            if order["expression"]["class"] in ("CONSTANT", "STAR"):
                raise UserError(f"{place}: {order_by!r} has a part that names no column. {nearest('', self.columns)}")
            self._check(order["expression"], order_by, place)
        rows = self._run(f"SELECT _row FROM samples ORDER BY\n{order_by}\n, {ties}", order_by, place)
        return [row[0] for row in rows]

    def _check(self, expression: Node, text: str, place: str) -> None:
        """Refuse subqueries, functions that do not always answer alike, and columns that are not there."""
        known = {name.lower() for name in self.columns}
        for node in walk(expression):
            if node.get("class") == "SUBQUERY":
                raise UserError(f"{place}: {text!r} holds a query. Only a sample's own columns may be used.")
            if node.get("class") in ("FUNCTION", "WINDOW") and node.get("function_name", "").lower() in self.changing:
                name = node["function_name"]
                raise UserError(
                    f"{place}: {name}() does not answer alike every time, so that nothing could be repeated."
                )
            if node.get("class") == "COLUMN_REF" and node["column_names"][-1].lower() not in known:
                name = node["column_names"][-1]
                raise UserError(f"{place}: there is no column {name!r}; {nearest(name, self.columns)}")

    def _sides(self, part: Node) -> tuple[str, str]:
        """SQL for the two sides of a comparison with a constant, the measured one first; nulls for anything else."""
        if part["class"] == "COMPARISON":
            sides = (part["left"], part["right"])
            constant = [not columns_of(side) for side in sides]
            if constant in ([False, True], [True, False]):
                texts = [f"TRY_CAST(({written(side)}) AS DOUBLE)" for side in sides]
                return (texts[0], texts[1]) if constant[1] else (texts[1], texts[0])
        return "NULL::DOUBLE", "NULL::DOUBLE"

    def _run(self, sql: str, text: str, place: str) -> list[tuple[Any, ...]]:
        try:
            return self.connection.execute(sql).fetchall()
        except duckdb.Error as error:
            raise UserError(f"{place}: DuckDB refuses {text!r}: {gist(error)}") from error


def _answer(row: Sequence[Any], texts: Sequence[str]) -> Answer:
    if row[0] is True:
        return Answer(True)
    for index, text in enumerate(texts):
        holds, value, threshold = row[1 + 3 * index : 4 + 3 * index]
        if holds is not True:
            return Answer(False, text, value, threshold)
    return Answer(False, " AND ".join(texts))
