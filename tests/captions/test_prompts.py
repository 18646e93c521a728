"""The prompt that is sent stands in a file, so that a change of it is seen; `python tests/captions/test_prompts.py` renews the files."""

from __future__ import annotations

from pathlib import Path

import pytest

from likeness.captions.prompts import RECIPES, first_prompt, next_prompt

FOLDER = Path(__file__).with_name("prompts")
COMPLAINTS = ["face: blue eyes", "framing: full body, but measured half body"]
SENT = {name: first_prompt(name, "person") for name in RECIPES} | {
    "character-again": next_prompt("character", "person", COMPLAINTS)
}


@pytest.mark.parametrize("name", SENT)
def test_prompt_is_the_snapshot(name: str) -> None:
    assert SENT[name] == (FOLDER / f"{name}.txt").read_text(encoding="utf-8").rstrip("\n")


@pytest.mark.parametrize("name", RECIPES)
def test_prompt_asks_for_each_field(name: str) -> None:
    prompt = first_prompt(name, "dog")
    assert all(f"- {field}: " in prompt for field in RECIPES[name].fields)
    assert "{" not in prompt
    assert "JSON" in prompt


if __name__ == "__main__":
    for name, text in SENT.items():
        (FOLDER / f"{name}.txt").write_text(f"{text}\n", encoding="utf-8")
