"""Ask a phase's SQL over the samples, and nothing else: one condition, one order, no files, no chance, no clock.

The text comes from a config that people share, so DuckDB runs with external access off and its configuration locked,
and the parsed text must be one expression over the columns of one table: statements, subqueries and functions whose
answer may differ from call to call are refused with a message for people.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from likeness.errors import UserError, nearest
from likeness.phases.samples import Sample

LOCK = (
    "SET python_enable_replacements = false",
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET enable_external_access = false",
    "SET lock_configuration = true",
)
EMPTY_PARTS = ("modifiers", "group_expressions", "group_sets", "having", "sample", "qualify", "where_clause")
Node = dict[str, Any]


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
    """The samples as one in-memory table that answers conditions and orders."""

    def __init__(self, samples: Sequence[Sample], schema: pa.Schema) -> None:
        self.columns = schema.names
        types = dict(zip(self.columns, schema.types, strict=True))
        values = [sample.columns for sample in samples]
        columns = [pa.array([row[name] for row in values], type_) for name, type_ in types.items()]
        rows = pa.table([pa.array(range(len(values)), pa.int64()), *columns], names=["_row", *types])
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
        for command in LOCK:
            self.connection.execute(command)

    def answers(self, condition: str, place: str) -> list[Answer]:
        """Say for each sample, in the given order, whether the condition holds; a null counts as no.

        place: the key in the config, for errors. Raises UserError for anything but one condition over the columns.
        """
        node = self._parse(f"SELECT * FROM samples WHERE (\n{condition}\n)", condition, place)
        where = node["where_clause"]
        if any(node[part] for part in EMPTY_PARTS if part != "where_clause") or not _is_plain(node):
            raise UserError(
                f"{place}: {condition!r} is not one condition. Write what may stand after SQL's WHERE, and no more."
            )
        self._check(where, condition, place)
        parts = _conjuncts(where)
        texts = [self._text(part) for part in parts]
        sides = [self._sides(part) for part in parts]
        chosen = [text for text, pair in zip(texts, sides, strict=True) for text in (f"({text})", *pair)]
        rows = self._run(
            f"SELECT ({self._text(where)}), {', '.join(chosen)} FROM samples ORDER BY _row", condition, place
        )
        kinds = [str(column[1]) for column in self.connection.description or []]
        if kinds and kinds[0] != "BOOLEAN":
            raise UserError(f"{place}: {condition!r} gives {kinds[0]}, not true or false. Compare it with something.")
        return [_answer(row, texts) for row in rows]

    def ordered(self, order_by: str, place: str) -> list[int]:
        """Positions of all samples in this order; ties break by sample id, then by name.

        Raises UserError for anything but expressions that may stand after SQL's ORDER BY.
        """
        node = self._parse(f"SELECT _row FROM samples ORDER BY\n{order_by}\n", order_by, place)
        modifiers = node["modifiers"]
        others = [part for part in EMPTY_PARTS if part != "modifiers" and node[part]]
        if others or not _is_plain(node) or [modifier["type"] for modifier in modifiers] != ["ORDER_MODIFIER"]:
            raise UserError(
                f"{place}: {order_by!r} is not an order. Write what may stand after SQL's ORDER BY, and no more."
            )
        for order in modifiers[0]["orders"]:
            if order["expression"]["class"] in ("CONSTANT", "STAR"):
                raise UserError(f"{place}: {order_by!r} has a part that names no column. {nearest('', self.columns)}")
            self._check(order["expression"], order_by, place)
        rows = self._run(f"SELECT _row FROM samples ORDER BY\n{order_by}\n, sample_id, id", order_by, place)
        return [row[0] for row in rows]

    def _parse(self, sql: str, text: str, place: str) -> Node:
        answer = json.loads(self._run("SELECT json_serialize_sql(?)", text, place, [sql])[0][0])
        if answer.get("error"):
            raise UserError(f"{place}: cannot read {text!r} as SQL: {_gist(answer['error_message'])}")
        if len(answer["statements"]) != 1 or answer["statements"][0]["node"]["type"] != "SELECT_NODE":
            raise UserError(f"{place}: {text!r} holds more than one expression. Remove the semicolon and all after it.")
        return answer["statements"][0]["node"]

    def _check(self, expression: Node, text: str, place: str) -> None:
        """Refuse subqueries, functions that do not always answer alike, and columns that are not there."""
        known = {name.lower() for name in self.columns}
        for node in _walk(expression):
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
            constant = [not any(node.get("class") == "COLUMN_REF" for node in _walk(side)) for side in sides]
            if constant in ([False, True], [True, False]):
                texts = [f"TRY_CAST(({self._text(side)}) AS DOUBLE)" for side in sides]
                return (texts[0], texts[1]) if constant[1] else (texts[1], texts[0])
        return "NULL::DOUBLE", "NULL::DOUBLE"

    def _text(self, expression: Node) -> str:
        """Write a parsed expression as SQL again."""
        tree = json.loads(
            self.connection.execute("SELECT json_serialize_sql('SELECT * FROM samples WHERE true')").fetchall()[0][0]
        )
        tree["statements"][0]["node"]["where_clause"] = expression
        sql = self.connection.execute("SELECT json_deserialize_sql(?)", [json.dumps(tree)]).fetchall()[0][0]
        return sql.split(" WHERE ", 1)[1]

    def _run(self, sql: str, text: str, place: str, values: list[Any] | None = None) -> list[tuple[Any, ...]]:
        try:
            return self.connection.execute(sql, values or []).fetchall()
        except duckdb.Error as error:
            raise UserError(f"{place}: DuckDB refuses {text!r}: {_gist(str(error))}") from error


def _is_plain(node: Node) -> bool:
    """Whether a query reads the samples and nothing else."""
    table = node["from_table"]
    return (
        table["type"] == "BASE_TABLE"
        and table["table_name"] == "samples"
        and not table["alias"]
        and not node["cte_map"]["map"]
        and len(node["select_list"]) == 1
    )


def _conjuncts(expression: Node) -> list[Node]:
    """The parts that a condition joins by AND."""
    if expression["type"] != "CONJUNCTION_AND":
        return [expression]
    return [part for child in expression["children"] for part in _conjuncts(child)]


def _answer(row: Sequence[Any], texts: Sequence[str]) -> Answer:
    if row[0] is True:
        return Answer(True)
    for index, text in enumerate(texts):
        holds, value, threshold = row[1 + 3 * index : 4 + 3 * index]
        if holds is not True:
            return Answer(False, text, value, threshold)
    return Answer(False, " AND ".join(texts))


def _walk(tree: Any) -> Iterator[Node]:
    if isinstance(tree, dict):
        yield tree
        for value in tree.values():
            yield from _walk(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _walk(value)


def _gist(message: str) -> str:
    """The first line of DuckDB's message."""
    return message.strip().splitlines()[0]
