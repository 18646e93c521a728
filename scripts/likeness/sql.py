"""SQL conditions and orders as trees: read, taken apart, and written again. Nothing is asked, and no table is needed.

DuckDB reads the text, so what counts as one condition or one order is what DuckDB takes for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import duckdb

from likeness.errors import UserError

EMPTY_PARTS = ("modifiers", "group_expressions", "group_sets", "having", "sample", "qualify", "where_clause")
Node = dict[str, Any]


def read_condition(condition: str, place: str) -> Node:
    """The tree of what may stand after SQL's WHERE, over the table `samples`.

    place: the key in the config, for errors. Raises UserError for anything but one expression.
    """
    node = _parse(f"SELECT * FROM samples WHERE (\n{condition}\n)", condition, place)
    if any(node[part] for part in EMPTY_PARTS if part != "where_clause") or not _is_plain(node):
        raise UserError(
            f"{place}: {condition!r} is not one condition. Write what may stand after SQL's WHERE, and no more."
        )
    return node["where_clause"]


def read_order(order_by: str, place: str) -> list[Node]:
    """The terms of what may stand after SQL's ORDER BY; each has its `expression`.

    Raises UserError for anything else.
    """
    node = _parse(f"SELECT _row FROM samples ORDER BY\n{order_by}\n", order_by, place)
    modifiers = node["modifiers"]
    others = [part for part in EMPTY_PARTS if part != "modifiers" and node[part]]
    if others or not _is_plain(node) or [modifier["type"] for modifier in modifiers] != ["ORDER_MODIFIER"]:
        raise UserError(
            f"{place}: {order_by!r} is not an order. Write what may stand after SQL's ORDER BY, and no more."
        )
    return modifiers[0]["orders"]


def conjuncts(expression: Node) -> list[Node]:
    """The parts that a condition joins by AND."""
    if expression["type"] != "CONJUNCTION_AND":
        return [expression]
    return [part for child in expression["children"] for part in conjuncts(child)]


def columns_of(expression: Node) -> set[str]:
    """Names of the columns that an expression reads, in small letters, as DuckDB compares them."""
    return {node["column_names"][-1].lower() for node in walk(expression) if node.get("class") == "COLUMN_REF"}


def written(expression: Node) -> str:
    """A parsed expression as SQL again."""
    tree = _tree("SELECT * FROM samples WHERE true")
    tree["statements"][0]["node"]["where_clause"] = expression
    return _text(tree).split(" WHERE ", 1)[1]


def written_order(orders: Sequence[Node]) -> str:
    """Parsed terms of an order as SQL again."""
    tree = _tree("SELECT _row FROM samples ORDER BY _row")
    tree["statements"][0]["node"]["modifiers"][0]["orders"] = list(orders)
    return _text(tree).split(" ORDER BY ", 1)[1]


def walk(tree: Any) -> Iterator[Node]:
    """Every node of a tree."""
    if isinstance(tree, dict):
        yield tree
        for value in tree.values():
            yield from walk(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from walk(value)


def gist(error: duckdb.Error | str) -> str:
    """The first line of DuckDB's message."""
    return str(error).strip().splitlines()[0]


def _parse(sql: str, text: str, place: str) -> Node:
    try:
        answer = _tree(sql)
    except duckdb.Error as error:
        raise UserError(f"{place}: DuckDB refuses {text!r}: {gist(error)}") from error
    if answer.get("error"):
        raise UserError(f"{place}: cannot read {text!r} as SQL: {gist(answer['error_message'])}")
    if len(answer["statements"]) != 1 or answer["statements"][0]["node"]["type"] != "SELECT_NODE":
        raise UserError(f"{place}: {text!r} holds more than one expression. Remove the semicolon and all after it.")
    return answer["statements"][0]["node"]


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


@cache
def _reader() -> duckdb.DuckDBPyConnection:
    return duckdb.connect(":memory:", config={"threads": 1})


def _tree(sql: str) -> Node:
    return json.loads(_reader().execute("SELECT json_serialize_sql(?)", [sql]).fetchall()[0][0])


def _text(tree: Node) -> str:
    return _reader().execute("SELECT json_deserialize_sql(?)", [json.dumps(tree)]).fetchall()[0][0]
