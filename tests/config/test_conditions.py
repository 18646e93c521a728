"""SQL of phases is refused while the configuration is read; what is recognised as plain, DuckDB would accept too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from likeness.config.conditions import PLAIN_CONDITION, PLAIN_NUMBERS, PLAIN_ORDER, PLAIN_TEXTS
from likeness.config.load import HOUSE, load_project
from likeness.config.subject import Subject
from likeness.errors import UserError
from likeness.phases.query import SampleQuery
from likeness.phases.samples import sample_schema

GOOD = "trigger: j4ne\nphotos: data/jane\n"


@pytest.mark.parametrize("kind", ["photos", "pairs"])
def test_plain_columns_are_columns_of_their_kind(kind: str) -> None:
    schema = sample_schema(kind)
    numbers = [schema.field(name).type for name in PLAIN_NUMBERS.split("|")]
    assert all(pa.types.is_floating(kind) or pa.types.is_integer(kind) for kind in numbers)
    assert {schema.field(name).type for name in PLAIN_TEXTS.split("|")} == {pa.string()}


NUMBER, TEXT = st.sampled_from(PLAIN_NUMBERS.split("|")), st.sampled_from(PLAIN_TEXTS.split("|"))
COMPARISON = st.one_of(
    st.tuples(NUMBER, st.sampled_from(["<", "<=", "=", "!=", "<>", ">", ">="]), st.integers(0).map(str)),
    st.tuples(NUMBER, st.sampled_from([" > ", "!= "]), st.floats(-9, 9).map(lambda value: f"{value:.3f}")),
    st.tuples(TEXT, st.sampled_from(["=", "!=", "<>"]), st.text("abc ;-", max_size=5).map(lambda value: f"'{value}'")),
    st.tuples(NUMBER | TEXT, st.sampled_from([" IS NULL", " is not null"])),
).map("".join)
"""Pairs of a negative number and an operator want a blank between them: `!=-` is no operator."""


@pytest.fixture(scope="module")
def query() -> SampleQuery:
    return SampleQuery([], sample_schema("photos"))


@given(st.lists(st.tuples(COMPARISON, st.sampled_from([" AND ", " or\n"])), min_size=1, max_size=4))
def test_duckdb_accepts_every_plain_condition(query: SampleQuery, parts: list[tuple[str, str]]) -> None:
    condition = "".join(text + joint for text, joint in parts[:-1]) + parts[-1][0]
    assert PLAIN_CONDITION.fullmatch(condition)
    assert query.answers(condition, "phases.x.where") == []


@given(st.lists(st.tuples(NUMBER | TEXT, st.sampled_from(["", " desc", " ASC nulls last"])).map("".join), min_size=1))
def test_duckdb_accepts_every_plain_order(query: SampleQuery, terms: list[str]) -> None:
    assert PLAIN_ORDER.fullmatch(", ".join(terms))
    assert query.ordered(", ".join(terms), "phases.x.order_by") == []


@pytest.mark.parametrize(
    ("phase", "key", "told"),
    [
        ('where: "sharpnes > 3"', "where", "there is no column 'sharpnes'; did you mean 'sharpness'?"),
        ('where: "sharpness >"', "where", "cannot read 'sharpness >' as SQL"),
        ("where: sharpness", "where", "gives DOUBLE, not true or false"),
        ("where: \"framing > 3 and sharpness > 'x'\"", "where", "DuckDB refuses"),
        ('where: "true; drop table samples"', "where", "phases."),
        ('where: "random() > 0.5"', "where", "does not answer alike every time"),
        ("order_by: sharpness des", "order_by", "cannot read 'sharpness des' as SQL"),
        ("order_by: skin_delta", "order_by", "there is no column 'skin_delta'"),
        ('order_by: "1"', "order_by", "names no column"),
    ],
)
def test_sql_that_the_decision_would_refuse_is_told_with_its_line(
    tmp_path: Path, phase: str, key: str, told: str
) -> None:
    path = tmp_path / "config" / "subjects" / "jane.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(f"{GOOD}phases:\n  first: {{}}\n  best:\n    {phase}\n", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_project(tmp_path)
    assert f"config/subjects/jane.yaml:6: subject jane: phases.best.{key}: " in str(caught.value)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    "phase",
    [
        {"where": "lower(framing) in ('close', 'half') and abs(yaw_deg) < 30", "order_by": "-sharpness"},
        {"where": "(sharpness > 20 OR face_px > 512) AND near_duplicate_rank = 1"},
    ],
)
def test_any_other_sql_over_columns_is_allowed(tmp_path: Path, phase: dict[str, str]) -> None:
    whole = {"shards": 1, "subjects": {"jane": {"trigger": "x", "photos": "a", "phases": {"main": phase}}}}
    assert load_project(tmp_path, overrides=whole).project.subjects["jane"].phases["main"].where == phase["where"]


def test_shipped_configurations_load_neither_duckdb_nor_pyarrow(tmp_path: Path) -> None:
    """Every job reads the configuration anew, so that a heavy import would be paid a hundred times."""
    code = """
import sys
from pathlib import Path
from likeness.config.load import load_project
from likeness.config.source import read_source

paths = [path for folder in ("config/examples", "demo/config/subjects") for path in Path(folder).glob("*.yaml")]
subjects = {path.stem: read_source(path, path.name)[0].values for path in paths}
assert load_project(Path(sys.argv[1]), overrides={"subjects": subjects}).project.subjects.keys() == subjects.keys() != set()
print({"duckdb", "pyarrow", "torch", "numpy", "pandas", "PIL"} & set(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=HOUSE,
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": "scripts"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "set()\n"


def test_the_default_phase_is_plain() -> None:
    phase = Subject.model_validate({"trigger": "x", "photos": ["a"]}).phases["main"]
    assert PLAIN_CONDITION.fullmatch(phase.where) and PLAIN_ORDER.fullmatch(phase.order_by)
