"""One line from fields; the oracle for measured facts is the miniature's grammar."""

from __future__ import annotations

import itertools

import pytest
from tests.captions.conftest import stage_of

from likeness.captions.assemble import assemble, clean, with_trigger
from likeness.captions.facts import BACKGROUND_COLOURS, FRAMING_WORDS, LIGHT_WORDS, POSE_WORDS, Facts, compose_caption
from likeness.captions.lint import lint
from likeness.captions.measured import as_fields


def test_measured_facts_read_as_the_grammar_says() -> None:
    stage = stage_of(trigger="r0bin")
    count = 0
    for values in itertools.product(
        [*FRAMING_WORDS, None], [*POSE_WORDS, None], [*LIGHT_WORDS, None], [*BACKGROUND_COLOURS, None]
    ):
        facts = Facts(*values)
        caption = assemble(stage, as_fields(facts), facts.framing)
        assert caption == compose_caption("r0bin person", facts)
        if facts.framing:
            assert lint(caption, stage, facts.framing) == []
            count += 1
    assert count == 3 * 4 * 5 * 11


def test_trigger_class_and_measured_framing_come_first() -> None:
    fields = {"framing": "full body", "pose": "Sitting.", "clothing": "red coat", "background": "brick wall"}
    assert assemble(stage_of(), fields, "close") == (
        "j4ne person, close portrait, sitting, wearing red coat, brick wall background"
    )
    assert assemble(stage_of(), fields, None) == "j4ne person, sitting, wearing red coat, brick wall background"


def test_style_and_edit_have_their_own_heads() -> None:
    assert assemble(stage_of("style"), {"subject": "A fox", "scene": "a river"}, "close") == "j4ne, a fox, a river"
    assert assemble(stage_of("edit"), {"change": "Replace the hat."}, None) == "j4ne replace the hat"


def test_what_stands_twice_is_said_once_and_the_trigger_is_taken_out() -> None:
    fields = {"pose": "J4NE standing", "scene": "a park", "background": "a park"}
    assert assemble(stage_of(), fields, None) == "j4ne person, standing, a park"
    assert assemble(stage_of(), {"scene": "in a green park at noon", "background": "green park at noon"}, None) == (
        "j4ne person, in a green park at noon"
    )


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"clothing": "sparkling dress", "scene": "park"}, "wearing sparkling dress, park"),
        ({"clothing": "gym shorts", "scene": "gym"}, "wearing gym shorts, gym"),
        (
            {"clothing": "red dress", "action": "leaning on a barrel", "scene": "bar"},
            "wearing red dress, leaning on a barrel, bar",
        ),
        (
            {"pose": "standing, arms crossed", "action": "arms crossed", "scene": "the park", "background": "a park"},
            "standing, arms crossed, the park",
        ),
    ],
)
def test_only_what_was_said_whole_is_dropped(fields: dict[str, str], line: str) -> None:
    assert assemble(stage_of(), fields, None) == f"j4ne person, {line}"


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("**A red `coat`**", "a red coat"),
        ("A “quoted”  sign…", 'a "quoted" sign'),
        ("a\x00b\u2028c\ttab", "a b c tab"),
        ("one – two", "one, two"),
        ("snake_case stays", "snake_case stays"),
        ("NASA suit.", "NASA suit"),
        (", , a hat, ,", "a hat"),
        ("“Metallica” band t-shirt", '"Metallica" band t-shirt'),
        ("Change the sign from “OPEN” to “CLOSED”.", 'change the sign from "OPEN" to "CLOSED"'),
        ('"Sitting on a wall."', "sitting on a wall"),
        ("'a torn end", "a torn end"),
        ("the girl's 'X'", "the girl's 'X'"),
    ],
)
def test_values_are_cleaned(value: str, line: str) -> None:
    assert clean(value) == line


@pytest.mark.parametrize(
    ("recipe", "text", "line"),
    [
        ("character", "on a beach", "j4ne, on a beach"),
        ("character", "person on a beach", "j4ne person on a beach"),
        ("character", "a portrait of J4ne", "a portrait of J4ne"),
        ("character", "j4nette on a beach", "j4ne, j4nette on a beach"),
        ("edit", "open the mouth", "j4ne open the mouth"),
        ("style", "a fox", "j4ne, a fox"),
        ("character", "[trigger] on a beach", "j4ne on a beach"),
        ("character", "photo of [trigger], {Trigger} smiles", "photo of j4ne, j4ne smiles"),
        ("style", "a fox, {trigger}", "a fox, j4ne"),
        ("style", "a [triggered] fox", "j4ne, a [triggered] fox"),
    ],
)
def test_hand_captions_get_the_trigger_where_it_is_missing(recipe: str, text: str, line: str) -> None:
    assert with_trigger(stage_of(recipe), text) == line
