"""Rules of the craft warn, each with its key and source, and only where they apply."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.config.conftest import GOOD, write

from likeness.config.load import load_project

NINE = "black-forest-labs/FLUX.2-klein-base-9B"


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ("training: {rank: 2}\n", "training.rank"),
        ("training: {alpha: 200}\n", "training.alpha"),
        ("training: {steps: 100}\n", "training.steps"),
        ("training: {targets: double_attn_img}\n", "training.targets"),
        ("faces: {crop: {padding: 0.1}}\n", "faces.crop.padding"),
        ("class_word: j4ne\n", "trigger"),
        (f"base_model: {NINE}\ntraining: {{optimizer: {{name: adafactor}}}}\n", "training.optimizer.name"),
        (
            f"base_model: {NINE}\nvariants: {{a: {{}}, b: {{training: {{optimizer: {{name: adafactor}}}}}}}}\n",
            "training.optimizer.name",
        ),
        ("export: [fal]\ntraining: {alpha: 8}\n", "export.fal"),
        ("evaluation: {recogniser: buffalo_l}\n", "evaluation.recogniser"),
    ],
)
def test_rules_of_the_craft_warn_with_their_source(folder: Path, more: str, key: str) -> None:
    write(folder, GOOD + more)
    warnings = load_project(folder).warnings
    assert [warning.key for warning in warnings] == [key]
    assert all(warning.source for warning in warnings)
    write(folder, GOOD)
    assert load_project(folder).warnings == ()


@pytest.mark.parametrize(
    "more", ["training: {optimizer: {name: adafactor}}", f"base_model: {NINE}", "class_word: woman"]
)
def test_neither_adafactor_nor_the_9b_is_warned_of_alone(folder: Path, more: str) -> None:
    write(folder, GOOD + more + "\n")
    assert load_project(folder).warnings == ()


def test_a_style_on_the_9b_may_take_adafactor(folder: Path) -> None:
    more = f"evaluation: {{clip: x}}\nbase_model: {NINE}\ntraining: {{optimizer: {{name: adafactor}}}}\n"
    write(folder, "recipe: style\ntrigger: inkw4sh\nphotos: data\n" + more)
    assert load_project(folder).warnings == ()


@pytest.mark.parametrize(
    "trigger", ["woman", "a person", "the Man", "my cat", "portrait photo", "white tiger", "Tiger"]
)
def test_a_trigger_of_everyday_words_is_warned_of(folder: Path, trigger: str) -> None:
    write(folder, f"trigger: {trigger}\nclass_word: white tiger\nphotos: data\n")
    assert [warning.key for warning in load_project(folder).warnings] == ["trigger"]


@pytest.mark.parametrize("trigger", ["j4ne", "j4ne woman", "ink style", "4 men", "☃"])
def test_a_trigger_with_a_word_of_its_own_is_not(folder: Path, trigger: str) -> None:
    write(folder, f"trigger: {trigger}\nphotos: data\n")
    assert load_project(folder).warnings == ()


def test_a_style_without_a_judge_is_warned_of(folder: Path) -> None:
    style = "recipe: style\ntrigger: ink style\nphotos: data/jane\nlimits: {min_face_px: null}\n"
    write(folder, style + "evaluation: {clip: null}\n")
    assert [warning.key for warning in load_project(folder).warnings] == ["evaluation.clip"]
    write(folder, style)
    assert load_project(folder).warnings == ()
