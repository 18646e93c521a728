"""The grid: which prompt and seed belongs to which half, and that adding one moves no other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from likeness.config.evaluation import Prompt
from likeness.errors import UserError
from likeness.evaluation.prompts import (
    edit_grid,
    fill,
    halves_of_prompts,
    halves_of_seeds,
    photo_grid,
    shared_halves,
)

NAMES = st.text("abcdefgh-", min_size=1, max_size=8)


def test_shipped_seeds_split_in_the_middle():
    assert halves_of_seeds((1, 2, 3, 4)) == {1: "select", 2: "select", 3: "report", 4: "report"}


@given(st.sets(st.integers(0, 10**6), min_size=2, max_size=12))
def test_no_half_of_seeds_is_empty(seeds):
    assert set(halves_of_seeds(sorted(seeds)).values()) == {"select", "report"}


@given(st.sets(st.integers(5, 10**6), max_size=6), st.integers(5, 10**6))
def test_an_added_seed_moves_no_other(more, added):
    before = halves_of_seeds((1, 2, 3, 4, *sorted(more)))
    after = halves_of_seeds((1, 2, 3, 4, *sorted(more | {added})))
    assert {seed: after[seed] for seed in before} == before


@given(st.sets(NAMES, max_size=6), NAMES)
def test_an_added_prompt_moves_no_other(more, added):
    shipped = {"SELECT": Prompt(text="x", split="select"), "REPORT": Prompt(text="x", split="report")}
    before = halves_of_prompts(shipped | {name: Prompt(text=name) for name in more})
    after = halves_of_prompts(shipped | {name: Prompt(text=name) for name in more | {added}})
    assert {name: after[name] for name in before} == before


@given(st.sets(NAMES, min_size=1, max_size=6))
def test_no_half_of_prompts_is_empty(names):
    halves = shared_halves(dict.fromkeys(names))
    assert {half for both in halves.values() for half in both} == {"select", "report"}


def test_grid_is_select_prompts_with_select_seeds_and_report_with_report():
    prompts = {"a": Prompt(text="{trigger} {class}", split="select"), "b": Prompt(text="b {class}", split="report")}
    points = photo_grid(prompts, (1, 2, 3, 4), "j4ne", "woman", (64, 32))
    assert [(point.prompt_id, point.seed, point.split) for point in points] == [
        ("a", 1, "select"),
        ("a", 2, "select"),
        ("b", 3, "report"),
        ("b", 4, "report"),
    ]
    assert points[0].prompt == "j4ne woman" and (points[0].width_px, points[0].height_px) == (64, 32)


def test_single_prompt_is_drawn_in_both_halves_with_different_seeds():
    points = photo_grid({"a": Prompt(text="{trigger}")}, (1, 3), "j4ne", "woman", (32, 32))
    assert [(point.seed, point.split) for point in points] == [(1, "select"), (3, "report")]


def test_grid_without_a_subject_prompt_is_refused():
    with pytest.raises(UserError, match="prompts"):
        photo_grid({"a": Prompt(text="x", kind="neutral")}, (1, 2), "j4ne", "woman", (32, 32))


def test_braces_that_mean_nothing_stay():
    assert fill("{trigger} {class} {other}", "j4ne", "{trigger}") == "j4ne {trigger} {other}"


def pair(name, source):
    return {"id": name, "sha256": f"t-{name}", "source_sha256": source, "reference_sha256s": []}


def held(name, source, use="held_out"):
    return {
        "image_sha256": f"t-{name}",
        "reference_sha256s": [source],
        "caption": f"edit {name}",
        "mask_sha256": None,
        "use": use,
    }


def test_edits_of_one_source_share_a_half_and_a_name():
    pairs = [pair("a", "s1"), pair("b", "s1"), pair("c", "s2"), pair("d", "s3")]
    rows = [held("b", "s1"), held("a", "s1"), held("c", "s2"), held("d", "s3", "reference")]
    points = edit_grid(rows, pairs, (1, 3), lambda found: (64, 64))
    assert {point.prompt_id: point.source_id for point in points} == {"a": "a", "b": "a", "c": "c"}
    halves = {point.prompt_id: point.split for point in points}
    assert halves["a"] == halves["b"] != halves["c"]
    assert {point.noise_key for point in points if point.prompt_id == "a"} == {"edit a\ns1"}


def test_edit_without_held_out_pairs_is_refused():
    with pytest.raises(UserError, match="held_out"):
        edit_grid([], [], (1, 2), lambda found: (64, 64))
