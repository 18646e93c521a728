"""The model card: its front matter is read back as it was meant, and it says what a user of the LoRA has to do."""

from __future__ import annotations

import pytest
import yaml

from likeness.config.base import ModelSource
from likeness.config.evaluation import PublishStage
from likeness.evaluation.card import write_card
from likeness.report.archive import from_card

BEST = {
    "variant": "main",
    "phase": "main",
    "step": 500,
    "rule": "csim, earliest within one standard error",
    "lora_scale": 0.8,
    "metrics": {"csim": {"value": 0.7, "low": 0.6, "high": 0.8, "n": 6}},
    "calibration": {"genuine": 0.8, "impostor": 0.1, "n_genuine": 5, "n_impostor": 9, "recogniser": "arcface-own-1"},
}


def card(trigger: str = "j4ne", recipe: str = "character", base: str = "models/base", samples=()) -> str:
    stage = PublishStage(
        recipe=recipe, trigger=trigger, class_word="person", base_model=ModelSource(source=base), training={"rank": 8}
    )
    return write_card("jane", stage, BEST, [], list(samples), 30)


@pytest.mark.parametrize(
    "trigger", ["[v]", "1234", "no", "#jane", "a: b", "j4ne", "1e5", "2024-01-01", "it's", "größe"]
)
def test_front_matter_is_read_back(trigger: str) -> None:
    _, front, _ = card(trigger).split("---\n", 2)
    assert yaml.safe_load(front) == {
        "base_model": "models/base",
        "library_name": "diffusers",
        "instance_prompt": trigger,
        "tags": ["lora", "flux2", "klein", "likeness"],
    }


def test_an_edit_says_that_it_needs_a_picture() -> None:
    assert "An edit LoRA for" in card(recipe="edit") and "image=picture" in card(recipe="edit")
    assert "A character LoRA for" in card() and "image=picture" not in card()


def test_an_unknown_licence_is_told_once_and_plainly() -> None:
    text = card()
    assert (
        "- Base model: licence unknown to Likeness. Commercial use: **unknown**; read the licence of models/base first."
        in text
    )


def test_a_sample_without_the_trigger_says_so() -> None:
    samples = [("images/a.png", "J4ne person, [close]"), ("images/b.png", "boats, not j4nette")]
    text = card(samples=samples)
    assert "![J4ne person, (close)](images/a.png)\nJ4ne person, [close]\n" in text
    assert "](images/b.png)\nboats, not j4nette *(without the trigger)*\n" in text


def test_the_archive_reads_the_card() -> None:
    found = from_card("0" * 12, card())
    assert (found.checkpoint, found.lora_scale, found.recogniser) == ("main/main/500", 0.8, "arcface-own-1")
    assert found.metrics == {"csim": {"value": 0.7, "low": 0.6, "high": 0.8}}
