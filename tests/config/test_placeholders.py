"""Words in braces that nothing fills are refused, and prompts that miss the subject are warned of."""

from __future__ import annotations

from pathlib import Path

import pytest

from likeness.config.load import Loaded, load_project
from likeness.errors import UserError


def load(folder: Path, more: str) -> Loaded:
    path = folder / "config" / "subjects" / "jane.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"trigger: j4ne\nclass_word: woman\nphotos: data/jane\n{more}\n", encoding="utf-8")
    return load_project(folder)


@pytest.mark.parametrize(
    ("more", "key", "told"),
    [
        (
            'prompts:\n  a: {text: "{triger} in x"}',
            "5: subject jane: prompts.a.text",
            "{triger}; did you mean '{trigger}'?",
        ),
        (
            'prompts:\n  a: {text: "{trigger} {class_word}"}',
            "5: subject jane: prompts.a.text",
            "did you mean '{class}'?",
        ),
        ('prompts:\n  a: {text: "{ trigger } in x"}', "5: subject jane: prompts.a.text", "nothing fills { trigger }"),
        (
            'probe: {p: {prompt: "{trigger} x", content: "a {clas}", style: "{trigger}"}}',
            "4: subject jane: probe.p.content",
            "did you mean '{class}'? Allowed: {class}, {trigger}",
        ),
        ('regularisation: {caption: "a {class}"}', "4: subject jane: regularisation.caption", "Allowed: {class_word}"),
    ],
)
def test_a_placeholder_that_nothing_fills_is_refused(tmp_path: Path, more: str, key: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, more)
    assert f"jane.yaml:{key}: nothing fills " in str(caught.value) and told in str(caught.value)


@pytest.mark.parametrize("text", ["{trigger} {class} by the sea", '{"who": "{trigger}", "place": {"sky": "grey"}} {}'])
def test_other_braces_are_text(tmp_path: Path, text: str) -> None:
    loaded = load(tmp_path, f"prompts: {{a: {{text: '{text}'}}}}")
    assert loaded.project.subjects["jane"].prompts["a"].text == text and loaded.warnings == ()


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("{text: a woman by the sea}", "has no {trigger}"),
        ("{text: j4net by the sea}", "has no {trigger}"),
        ("{text: J4ne by the sea}", ""),
        ("{text: '{trigger} by the sea'}", ""),
        ("{text: a woman, kind: bleed}", ""),
        ("{text: boats, kind: neutral}", ""),
        ("{text: '{trigger} woman', kind: bleed}", "holds the trigger"),
        ("{text: boats of j4ne, kind: neutral}", "holds the trigger"),
    ],
)
def test_a_prompt_shows_the_subject_where_it_should_and_nowhere_else(tmp_path: Path, prompt: str, told: str) -> None:
    warnings = load(tmp_path, f"prompts: {{a: {prompt}}}").warnings
    assert [(warning.key, told in warning.text) for warning in warnings] == [("prompts.a", True)] * bool(told)


def test_an_edit_draws_its_pairs_and_asks_for_no_trigger(tmp_path: Path) -> None:
    edit = {"recipe": "edit", "trigger": "x", "pairs": "data", "prompts": {"a": {"text": "smile"}}}
    assert load_project(tmp_path, overrides={"subjects": {"swap": edit}}).warnings == ()
