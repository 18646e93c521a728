"""All mistakes are told in one round: those of form, those of substance in the rest, and nothing that only follows."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.config.conftest import GOOD, complaint, write

FORM_AND_SUBSTANCE = """\
recipe: character
photos: data/jane
held_out: two
training: {rank: -3, targets: all_block, targts: all}
variants:
  main: {phases: [nope], colour: red}
  few: {training: {rnk: 3, sigma: {scale: wide}}}
phases:
  wide: {stebs: 7}
  fine:
    training: {losses: {identity: {weight: 2}}, rank: 0}
    where: "sharpnes > 3"
export: [simpletuna]
surgery:
  clean: {method: resize, of: bst, rank: 4}
  odd: {method: resiz, of: main}
choice: {metric: likenes}
pick: {variant: few, phase: fine, step: 3}
captions: {backend: fact, max_words: 1000}
"""


def test_mistakes_of_form_hide_none_of_substance(folder: Path) -> None:
    """Whatever can be judged of the rest is told in the same round."""
    write(folder, FORM_AND_SUBSTANCE)
    text = complaint(folder)
    for expected in (
        "jane.yaml: subject jane: trigger: missing",
        "jane.yaml:3: subject jane: held_out",
        "jane.yaml:4: subject jane: training.rank",
        "jane.yaml:4: subject jane: training.targts",
        "jane.yaml:6: subject jane: variants.main.colour: unknown key",
        "jane.yaml:6: subject jane: variants.main.phases: no phase 'nope'; there are wide, fine",
        "jane.yaml:7: subject jane: variants.few.training.rnk: unknown key; did you mean 'rank'?",
        "jane.yaml:7: subject jane: variants.few.training.sigma.scale: input should be a valid number",
        "jane.yaml:9: subject jane: phases.wide.stebs: unknown key; did you mean 'steps'?",
        "jane.yaml:11: subject jane: phases.fine.training.losses.identity.model: missing",
        "jane.yaml:11: subject jane: phases.fine.training.rank: input should be greater than or equal to 1; found 0",
        "jane.yaml:13: subject jane: export.simpletuna: unknown trainer; did you mean 'simpletuner'?",
        "jane.yaml:16: subject jane: surgery.odd.method",
        "jane.yaml:17: subject jane: choice.metric: no metric 'likenes'",
        "jane.yaml:19: subject jane: captions.max_words",
    ):
        assert expected in text, (expected, text)
    assert text.startswith("15 mistakes")


def test_parts_that_agree_with_nothing_are_told_together(folder: Path) -> None:
    write(
        folder,
        GOOD + "export: [simpletuna]\nsurgery: {small: {method: resize, of: bst, rank: 2}}\nhold_out: 3\n"
        "pick: {variant: main, phase: main, step: 3}\nmasks: {backend: grab}\ntraining: {targets: all_block}\n",
    )
    text = complaint(folder)
    for expected in (
        "export.simpletuna",
        "surgery.small: no variant 'bst'",
        "hold_out: unknown key",
        "pick.step: main/main",
    ):
        assert f"subject jane: {expected}" in text
    assert text.startswith("4 mistakes")
    write(folder, GOOD + "hold_out: 3\nmasks: {backend: grab}\ntraining: {targets: all_block}\n")
    assert complaint(folder).startswith("3 mistakes")


def test_an_empty_file_misses_trigger_and_photos(folder: Path) -> None:
    write(folder, "")
    text = complaint(folder)
    assert "jane: trigger: missing; it has no default" in text and "jane: photos: missing; recipe 'character'" in text
    assert text.startswith("2 mistakes")


@pytest.mark.parametrize(
    "more",
    [
        "phases: {wide: {top: many}, fine: {}}\nvariants: {main: {phases: [wide]}}\n",
        "surgery: {small: {method: resiz, of: main}, less: {method: resize, of: small, rank: 2}}\n",
        "trainers: {simpletuner: {comand: x}}\nvariants: {main: {trainer: simpletuner}}\n",
        "base_model: {sorce: klein-base-9B}\ntraining: {targets: all_blocks@single=23}\n",
        "preset: style-32\nrecipe: stile\n",
        "variants: {main: 3}\npick: {variant: main, phase: main, step: 1}\n",
    ],
)
def test_what_only_follows_from_another_mistake_is_not_told(folder: Path, more: str) -> None:
    write(folder, "trigger: x\nphotos: a\n" + more)
    first = more.partition(":")[0]
    lines = complaint(folder).split("\n")[1:]
    assert all(f"jane: {first}" in line or " recipe: " in line for line in lines), lines


def test_a_mistake_in_one_subject_leaves_the_defaults_of_others_alone(folder: Path) -> None:
    (folder / "config" / "config.yaml").write_text("defaults: {training: {rank: 8, rnk: 1}, photos: data}\n", "utf-8")
    write(folder, "trigger: a\n", "one")
    write(folder, "trigger: b\n", "two")
    text = complaint(folder)
    assert text.count("config/config.yaml:1: subject one: training.rnk") == 1
    assert text.count("config/config.yaml:1: subject two: training.rnk") == 1
