"""A phase's SQL: what it may say, what is refused, and that the rest of the machine is out of reach."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.phases.fabricate import World, stage_of

from likeness.errors import UserError
from likeness.phases.query import SampleQuery
from likeness.phases.samples import join_samples, sample_schema

VALUES = [10.0, 20.0, None, 30.0, 20.0]


def query_over(values: list[float | None]) -> SampleQuery:
    world = World()
    for index, value in enumerate(values):
        world.add(f"p{index}", sharpness=value, brightness=float(index))
    tables = (world.images, world.faces, world.masks, world.quality, world.captions)
    samples = join_samples(*tables, stage_of("photos"))
    return SampleQuery([sample.columns for sample in samples], sample_schema("photos"))


@pytest.fixture(scope="module")
def query() -> SampleQuery:
    return query_over(VALUES)


def test_a_null_is_not_kept_and_the_failed_part_is_named(query: SampleQuery) -> None:
    answers = query.answers("sharpness > 15 AND brightness < 4", "phases.main.where")
    assert [answer.holds for answer in answers] == [False, True, False, True, False]
    assert (answers[0].value, answers[0].threshold) == (10.0, 15.0) and "sharpness" in answers[0].failed
    assert (answers[2].value, answers[2].threshold) == (None, 15.0)
    assert (answers[4].value, answers[4].threshold) == (4.0, 4.0) and "brightness" in answers[4].failed


def test_a_constant_on_the_left_and_compound_parts(query: SampleQuery) -> None:
    assert query.answers("15 < sharpness", "k")[0].value == 10.0
    either = query.answers("sharpness > 15 OR id = 'p0'", "k")
    assert [answer.holds for answer in either] == [True, True, False, True, True]
    assert either[2].value is None and either[2].threshold is None
    assert all(
        answer.holds for answer in query.answers("id IN ('p0','p1','p2','p3','p4') AND caption LIKE '%of p%'", "k")
    )
    assert all(answer.holds for answer in query.answers("true", "k"))


def test_order_with_directions_and_nulls(query: SampleQuery) -> None:
    names = [f"p{index}" for index in query.ordered("sharpness DESC NULLS FIRST, brightness DESC", "k")]
    assert names == ["p2", "p3", "p4", "p1", "p0"]


@pytest.mark.parametrize(
    "poison",
    [
        "true; DROP TABLE samples",
        "true; COPY samples TO '{folder}/stolen.csv'",
        "true) OR (SELECT count(*) > 0 FROM read_csv('{folder}/secret.csv')",
        "id IN (SELECT column0 FROM read_csv('{folder}/secret.csv'))",
        "EXISTS (SELECT * FROM '{folder}/secret.csv')",
        "EXISTS (SELECT * FROM read_text('{folder}/secret.csv'))",
        "(SELECT true FROM samples LIMIT 1)",
        "true) UNION SELECT * FROM samples WHERE (true",
        "true) ORDER BY (id",
        "true) LIMIT (1",
        "true) GROUP BY ALL HAVING (true",
        "true) QUALIFY (row_number() OVER () < 3",
        "true) --",
        "PRAGMA version",
        "ATTACH '{folder}/other.db'",
        "COPY samples TO '{folder}/stolen.csv'",
        "SET threads = 8",
        "INSTALL httpfs",
        "LOAD httpfs",
        "random() < 0.5",
        "age(TIMESTAMP '2020-01-01') > INTERVAL 1 DAY",
        "current_localtimestamp() > TIMESTAMP '2020-01-01'",
        "Current_LocalTime() IS NOT NULL",
        "pg_postmaster_start_time() IS NOT NULL",
        "now() > '2020-01-01'",
        "current_date > '2020-01-01'",
        "getvariable('x') IS NULL",
        "count(*) > 1",
        "sharpness",
        "1",
        "'true'",
        "",
        "sharpness >",
        "caption::INTEGER > 3",
    ],
)
def test_poisoned_conditions_are_refused_and_touch_nothing(query: SampleQuery, tmp_path: Path, poison: str) -> None:
    (tmp_path / "secret.csv").write_text("p0\n")
    with pytest.raises(UserError, match=r"phases\.evil\.where"):
        query.answers(poison.replace("{folder}", str(tmp_path)), "phases.evil.where")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret.csv"]
    assert len(query.answers("true", "k")) == len(VALUES)


@pytest.mark.parametrize(
    "poison",
    [
        "sharpness LIMIT 1",
        "1",
        "ALL",
        "random()",
        "sharpness; COPY samples TO 'x'",
        "(SELECT max(column0) FROM read_csv('/etc/hostname'))",
        "sharpness) --",
        "",
        "sharpness UNION SELECT 1",
    ],
)
def test_poisoned_orders_are_refused(query: SampleQuery, poison: str) -> None:
    with pytest.raises(UserError, match=r"phases\.evil\.order_by"):
        query.ordered(poison, "phases.evil.order_by")


def test_an_unknown_column_is_named_with_the_nearest(query: SampleQuery) -> None:
    with pytest.raises(
        UserError, match=r"phases\.first\.where: there is no column 'sharpnes'; did you mean 'sharpness'"
    ):
        query.answers("sharpnes > 3", "phases.first.where")
    with pytest.raises(UserError, match=r"phases\.first\.order_by.*'brightnes'; did you mean 'brightness'"):
        query.ordered("brightnes", "phases.first.order_by")


def test_where_files_lie_cannot_decide(query: SampleQuery) -> None:
    with pytest.raises(UserError, match="no column 'path'"):
        query.answers("path LIKE '%jane%'", "k")


def test_a_variable_of_the_program_is_out_of_reach(query: SampleQuery) -> None:
    secret = pd.DataFrame({"a": [1]})
    with pytest.raises(UserError):
        query.answers("(SELECT a FROM secret) = 1", "k")
    assert len(secret) == 1


@settings(max_examples=25, deadline=None)
@given(st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), min_size=1, max_size=8), st.floats(-1e6, 1e6))
def test_conditions_and_orders_agree_with_pandas(values: list[float | None], limit: float) -> None:
    frame = pd.DataFrame({"sharpness": pd.array(values, "Float64")})
    query = query_over(values)
    held = [answer.holds for answer in query.answers(f"sharpness <= {limit!r}", "k")]
    assert held == (frame["sharpness"] <= limit).fillna(False).tolist()
    ranked = [values[index] for index in query.ordered("sharpness DESC NULLS LAST", "k")]
    expected = frame.sort_values("sharpness", ascending=False, na_position="last")["sharpness"]
    assert ranked == [None if pd.isna(value) else value for value in expected]


@settings(max_examples=120, deadline=None)
@given(text=st.text(alphabet="abcsharpnei()'\";-*/%<>=,. \n0123456789_", max_size=40))
def test_any_text_gives_an_answer_or_a_user_error(query: SampleQuery, text: str) -> None:
    for ask in (query.answers, query.ordered):
        try:
            result = ask(text, "k")
        except UserError as error:
            assert str(error).startswith("k: ")
        else:
            assert len(result) == len(VALUES)
