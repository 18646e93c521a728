"""The schema and the key table are generated; this fails when they drift from the models."""

from __future__ import annotations

import json

from likeness.config.document import render_keys, render_schema
from likeness.config.load import HOUSE


def test_schema_is_up_to_date() -> None:
    assert (HOUSE / "config" / "schema.json").read_text(encoding="utf-8") == render_schema(), "run `make generate`"
    assert "trigger" in json.loads(render_schema())["$defs"]["subject"]["properties"]


def test_key_table_is_up_to_date_and_every_key_is_described() -> None:
    table = render_keys()
    assert (HOUSE / "config" / "README.md").read_text(encoding="utf-8").endswith(table), "run `make generate`"
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    assert len(rows) > 100
    assert all(line.rstrip(" |").count("|") >= 3 and not line.endswith("|  |") for line in rows)
