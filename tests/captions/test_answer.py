"""Answers in every shape that models give them: the fields are found, or the problem is named."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from likeness.captions.answer import parse_answer

NAMES = ["framing", "pose", "clothing", "scene", "props"]
WANTED = {"pose": "sitting", "scene": "a beach"}


@pytest.mark.parametrize(
    "text",
    [
        '{"pose": "sitting", "scene": "a beach"}',
        '```json\n{"pose": "sitting", "scene": "a beach"}\n```',
        '<think>Is it {"pose": "lying", "scene": "x"}?</think>{"pose": "sitting", "scene": "a beach"}',
        'so it is.</think>\n{"pose": "sitting", "scene": "a beach"}',
        '{"pose": "sitting", "scene": "a beach",}',
        "{'pose': 'sitting', 'scene': 'a beach', 'props': None, 'clothing': True}",
        'Sure! Here you go: {"pose": "sitting", "scene": "a beach"} Hope this helps.',
        '{"pose": "sitting",\n "scene": "a\nbeach"}',
        '{"Pose": "sitting", "location": "a beach", "mood": "calm", "props": "none", "clothing": "N/A"}',
        '{"pose": ["sitting"], "scene": {"place": "a beach"}, "props": [], "clothing": null}',
        "{“pose”: “sitting”, “scene”: “a beach”}",
        '{"pose": “sitting”, "scene": "a beach"}',
        'pose: "sitting"\nscene: “a beach”\nclothing: “none”',
        '{"pose": "sitting", "scene": "a beach", "props": "a half-told st',
        "**pose**: sitting\n- scene: a beach",
        '<|im_start|>{"pose": "sitting", "scene": "a beach"}<|im_end|>',
        '{"example": 1} then {"pose": "sitting", "scene": "a beach"}',
        '{"pose": "sitting", "scene": "a beach", "clothing": "I\'m sorry, I cannot say"}',
    ],
)
def test_finds_the_fields(text: str) -> None:
    parsed = parse_answer(text, NAMES)
    assert parsed.fields == WANTED
    assert parsed.problem == ""


@pytest.mark.parametrize(
    "said",
    [
        "black t-shirt reading “HELLO WORLD” and blue jeans",
        "“Metallica” band t-shirt",
        "a shirt with ‘no’ on it, jeans",
    ],
)
def test_quotes_inside_a_value_tear_nothing(said: str) -> None:
    wanted = {"pose": "sitting", "clothing": said, "scene": "a beach"}
    whole = json.dumps(wanted, ensure_ascii=False)
    assert parse_answer(whole, NAMES).fields == wanted
    torn = whole[: whole.index("beach")]
    assert parse_answer(torn, NAMES).fields == {"pose": "sitting", "clothing": said}


@pytest.mark.parametrize("said", ['t-shirt reading "HELLO"', '"HELLO" and "WORLD"', "the boys' shirt, the girl's 'X'"])
def test_quotes_at_the_edge_of_a_line_stay_with_their_partner(said: str) -> None:
    assert parse_answer(f"clothing: {said}", NAMES).fields == {"clothing": said}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "empty"),
        ("   \n", "empty"),
        ("<think>I never end", "empty"),
        ("I'm sorry, but I can't help with identifying people.", "refusal"),
        ("I cannot describe real persons", "refusal"),
        ("A person sits on a beach.", "no JSON"),
        ("{}", "no JSON"),
        ("[1, 2", "no JSON"),
    ],
)
def test_names_the_problem(text: str, problem: str) -> None:
    parsed = parse_answer(text, NAMES)
    assert parsed.fields == {}
    assert parsed.problem.startswith(problem)


@given(st.text(max_size=200))
def test_never_raises(text: str) -> None:
    parsed = parse_answer(text, NAMES)
    assert bool(parsed.fields) != bool(parsed.problem)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.dictionaries(st.sampled_from(NAMES), VALUES))
def test_values_of_any_type_become_lines(fields: dict[str, object]) -> None:
    for value in parse_answer(json.dumps(fields), NAMES).fields.values():
        assert isinstance(value, str)
        assert value == " ".join(value.split()) != ""


def test_deep_nesting_does_no_harm() -> None:
    parsed = parse_answer("{" * 5000 + "}" * 5000 + '{"pose": "sitting"}', NAMES)
    assert parsed.fields == {"pose": "sitting"}
