"""The schema and the key table are generated; this fails when they drift from the models, and where the schema is wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from likeness.config.document import render_keys, render_schema
from likeness.config.load import HOUSE
from likeness.config.source import read_source

SCHEMA = HOUSE / "config" / "schema.json"
SHIPPED = [
    path
    for pattern in ("config/config.yaml", "config/examples/*.yaml", "demo/config/*.yaml", "demo/config/subjects/*.yaml")
    for path in sorted(HOUSE.glob(pattern))
]
SHORT = {"trigger": "j4ne", "photos": "data/jane"}


def refusals(values: dict[str, Any]) -> list[str]:
    """What an editor would underline, by the jsonschema package."""
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    return [f"{error.json_path}: {error.message}" for error in Draft202012Validator(schema).iter_errors(values)]


def test_schema_is_up_to_date() -> None:
    assert SCHEMA.read_text(encoding="utf-8") == render_schema(), "run `make generate`"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.relative_to(HOUSE).as_posix())
def test_schema_accepts_what_is_shipped_and_the_files_lead_to_it(path: Path) -> None:
    source, errors = read_source(path, path.name)
    assert errors == [] and refusals(source.values) == []
    found = re.match(r"# yaml-language-server: \$schema=(\S+)\n", path.read_text(encoding="utf-8"))
    assert found and (path.parent / found[1]).resolve() == SCHEMA


@pytest.mark.parametrize("name", ["recipes", "presets"])
def test_schema_accepts_the_keys_of_every_layer(name: str) -> None:
    for path in sorted((HOUSE / "config" / name).glob("*.yaml")):
        source, _ = read_source(path, path.name)
        layer = {key: value for key, value in source.values.items() if key != "about"}
        assert refusals(layer) == [] and refusals({"defaults": layer}) == [], path


@pytest.mark.parametrize(
    "more",
    [
        {"preset": "herbst", "export": ["fal"], "reference": "me.jpg", "base_model": "miniature"},
        {"photos": [{"path": "a", "repeats": 2}, "b"], "export": {"fal": {"phases": ["main"]}}},
        {"surgery": {"small": {"method": "resize", "of": "main", "rank": 4}}},
        {"surgery": {"less": {"method": "subtract", "of": ["main"], "background": "room.safetensors", "alpha": 0.5}}},
        {"variants": {"wide": {"training": {"rank": 64, "losses": {"identity": {"model": "face.onnx"}}}}}},
        {"training": {"losses": {"identity": {"weight": 0.2}}}, "masks": {"model": {"revision": "main"}}},
    ],
)
def test_schema_accepts_shorthands_and_parts_of_sections(more: dict[str, Any]) -> None:
    assert refusals(SHORT | more) == []
    assert refusals({"shards": 2, "defaults": more, "subjects": {"jane": SHORT | more}}) == []


@pytest.mark.parametrize(
    ("more", "place", "told"),
    [
        ({"triger": "x"}, "$", "'triger' was unexpected"),
        ({"training": {"rnk": 8}}, "$.training", "'rnk' was unexpected"),
        ({"training": {"rank": "many"}}, "$.training.rank", "'many' is not of type 'integer'"),
        ({"training": {"rank": 0}}, "$.training.rank", "0 is less than the minimum of 1"),
        ({"recipe": "caracter"}, "$.recipe", "'caracter' is not one of"),
        ({"variants": {"a": {"training": {"rnk": 8}}}}, "$.variants.a.training", "'rnk' was unexpected"),
        ({"phases": {"a": {"training": {"rank": "x"}}}}, "$.phases.a.training.rank", "'x' is not of type 'integer'"),
        ({"surgery": {"a": {"of": "main"}}}, "$.surgery.a", "'method' is a required property"),
        ({"photos": 3}, "$.photos", "3 is not valid under any of the given schemas"),
        ({"base_model": {"sorce": "x"}}, "$.base_model", "is not valid under any of the given schemas"),
    ],
)
def test_schema_refuses_typos_and_wrong_types_at_their_place(more: dict[str, Any], place: str, told: str) -> None:
    (found,) = refusals(SHORT | more)
    assert found.startswith(f"{place}: ") and told in found
    (found,) = refusals({"shards": 2, "subjects": {"jane": SHORT | more}})
    assert found.startswith(f"$.subjects.jane{place[1:]}: ") and told in found
    (found,) = refusals({"defaults": more})
    assert found.startswith(f"$.defaults{place[1:]}: ") and told in found


def test_schema_knows_the_keys_of_config_yaml() -> None:
    assert "'shard' was unexpected" in "".join(refusals({"shard": 3, "offline": True}))
    assert refusals({"shards": 1000}) == ["$.shards: 1000 is greater than the maximum of 256"]


def test_key_table_is_up_to_date_and_every_key_is_described() -> None:
    table = render_keys()
    assert (HOUSE / "config" / "README.md").read_text(encoding="utf-8").endswith(table), "run `make generate`"
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    assert len(rows) > 100
    assert all(line.rstrip(" |").count("|") >= 3 and not line.endswith("|  |") for line in rows)
