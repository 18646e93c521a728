"""Each flag both ways: raised where it should be, silent where it should not, from fabricated tables through the real reading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.report.fabricate import (
    Run,
    Value,
    character_settings,
    character_values,
    curate_character,
    curate_edit,
    edit_settings,
    evaluate_character,
    evaluate_edit,
    read_best,
    write_best,
)

from likeness.evaluation.scores import BASE_CHECKPOINT, Checkpoint
from likeness.report.flags import flags_of, set_flags
from likeness.report.gather import gather_curation, gather_subject


def steady(at: Checkpoint, scale: float, prompt: str, seed: int) -> dict[str, float | str]:
    """A variant `long` that stays where it got."""
    return dict(
        character_values(Checkpoint("main", at.phase, at.step) if at.variant == "long" else at, scale, prompt, seed)
    )


def changed(**metrics: float) -> Value:
    """Steady values of which some metrics of every LoRA image are replaced."""

    def values(at: Checkpoint, scale: float, prompt: str, seed: int) -> dict[str, float | str]:
        return steady(at, scale, prompt, seed) | ({} if at == BASE_CHECKPOINT else metrics)

    return values


def flags_from_set(folder: Path, settings: dict[str, Any] | None = None, **curation: Any) -> dict[str, str]:
    run = Run(folder, {"robin": settings or character_settings(folder)})
    curate_character(run, "robin", **({"side_px": 32} | curation))
    return {flag.name: flag.text for flag in set_flags(gather_curation(run.results, "robin", run.settings["robin"]))}


def flags_from_scores(folder: Path, values: Value, **settings: Any) -> dict[str, str]:
    run = Run(folder, {"robin": character_settings(folder, **settings)})
    curate_character(run, "robin", side_px=32)
    evaluate_character(run, "robin", values)
    return {flag.name: flag.text for flag in flags_of(gather_subject(run.results, "robin", run.settings["robin"]))}


def test_a_good_set_raises_nothing(tmp_path: Path) -> None:
    assert flags_from_set(tmp_path) == {}


def test_good_scores_raise_nothing(tmp_path: Path) -> None:
    assert flags_from_scores(tmp_path, steady) == {}


@pytest.mark.parametrize(("kept", "raised"), [(7, True), (8, False), (40, False), (41, True)])
def test_set_size(tmp_path: Path, kept: int, raised: bool) -> None:
    found = flags_from_set(
        tmp_path, character_settings(tmp_path, training={"steps": 2000, "batch_size": 8}), kept=kept - 0
    )
    assert ("set size" in found) is raised
    if raised:
        assert f"{kept} photos are trained on" in found["set size"]


@pytest.mark.parametrize(("close", "raised"), [(6, True), (5, False)])
def test_headshots_are_more_than_half(tmp_path: Path, close: int, raised: bool) -> None:
    kept = iter(range(100))
    found = flags_from_set(tmp_path, framing=lambda _: "close" if next(kept) < close else "full")
    assert ("headshots" in found) is raised
    if raised:
        assert found["headshots"].startswith("6 of 11 photos are close portraits")


@pytest.mark.parametrize(("lights", "raised"), [(1, True), (2, False)])
def test_one_light(tmp_path: Path, lights: int, raised: bool) -> None:
    found = flags_from_set(tmp_path, light_cluster=lambda place: place % lights)
    assert ("one light" in found) is raised


def test_light_is_not_judged_from_few_measured_photos(tmp_path: Path) -> None:
    measured = iter(range(100))
    assert "one light" not in flags_from_set(tmp_path, light_cluster=lambda _: 0 if next(measured) < 3 else None)


@pytest.mark.parametrize(("backgrounds", "raised"), [(1, True), (2, True), (3, False)])
def test_few_backgrounds(tmp_path: Path, backgrounds: int, raised: bool) -> None:
    found = flags_from_set(tmp_path, background_cluster=lambda place: place % backgrounds)
    assert ("few backgrounds" in found) is raised


@pytest.mark.parametrize(("steps", "raised"), [(68, True), (69, False)])
def test_few_repeats_count_every_view_of_a_photo(tmp_path: Path, steps: int, raised: bool) -> None:
    """11 photos, batches of 8: 69 steps show 552 samples, 50.2 a photo."""
    settings = character_settings(tmp_path, training={"steps": steps, "batch_size": 8}, variants={"main": {}})
    assert ("few repeats" in flags_from_set(tmp_path, settings)) is raised


@pytest.mark.parametrize(
    ("source", "backend", "raised"),
    [
        ("miniature", "opencv", True),
        ("miniature", "insightface", False),
        ("black-forest-labs/FLUX.2-klein-base-4B", "opencv", False),
    ],
)
def test_base_too_small(tmp_path: Path, source: str, backend: str, raised: bool) -> None:
    settings = character_settings(tmp_path)
    settings["base_model"]["source"], settings["faces"]["backend"] = source, backend
    assert ("base too small" in flags_from_set(tmp_path, settings)) is raised


@pytest.mark.parametrize(("copying", "raised"), [(0.12, True), (0.08, False)])
def test_copying(tmp_path: Path, copying: float, raised: bool) -> None:
    found = flags_from_scores(tmp_path, changed(copying=copying))
    assert ("copying" in found) is raised
    if raised:
        assert "by 0.120" in found["copying"]


@pytest.mark.parametrize(("limit", "raised"), [(0.01, True), (0.5, False), (None, False)])
def test_bleed_is_held_against_the_choice_limit(tmp_path: Path, limit: float | None, raised: bool) -> None:
    assert ("bleed" in flags_from_scores(tmp_path, steady, choice={"max_bleed": limit})) is raised


@pytest.mark.parametrize(("ratio", "raised"), [(1.4, True), (1.25, False)])
def test_big_heads_are_held_against_the_base(tmp_path: Path, ratio: float, raised: bool) -> None:
    assert ("big heads" in flags_from_scores(tmp_path, changed(head_ratio=ratio))) is raised


@pytest.mark.parametrize(("diversity", "raised"), [(0.09, True), (0.11, False)])
def test_low_diversity_is_held_against_the_base(tmp_path: Path, diversity: float, raised: bool) -> None:
    assert ("low diversity" in flags_from_scores(tmp_path, changed(diversity=diversity))) is raised


def test_over_trained_names_the_variant_and_its_best_step(tmp_path: Path) -> None:
    found = flags_from_scores(tmp_path, character_values)
    assert "variant long is best at step 100" in found["over-trained"]
    assert "over-trained" not in flags_from_scores(tmp_path / "steady", steady)


@pytest.mark.parametrize(("error", "raised"), [(0.03, True), (0.005, False)])
def test_over_trained_edit_ends_with_more_error(tmp_path: Path, error: float, raised: bool) -> None:
    from tests.report.fabricate import edit_values

    def values(at: Checkpoint, scale: float, prompt: str, seed: int) -> dict[str, float | str]:
        return edit_values(at, scale, prompt, seed) | ({"target_error": error} if at.phase == "best" else {})

    run = Run(tmp_path, {"smile": edit_settings(tmp_path)})
    curate_edit(run, "smile")
    evaluate_edit(run, "smile", values)
    flags = [flag.name for flag in flags_of(gather_subject(run.results, "smile", run.settings["smile"]))]
    assert flags == (["over-trained"] if raised else [])


def test_noise_alone_is_no_over_training(tmp_path: Path) -> None:
    """The last checkpoint lies below the best by a third of the gain, but no more than prompts differ among themselves."""

    def values(at: Checkpoint, scale: float, prompt: str, seed: int) -> dict[str, float | str]:
        found = steady(at, scale, prompt, seed)
        last = at.step == (300 if at.variant == "long" else 200)
        swing = {"red": -2.0, "blue": 1.2, "black": 0.3, "left": -0.5}.get(prompt, 0.0)
        return found | ({"likeness": float(found["likeness"]) + swing} if last and "likeness" in found else {})

    assert "over-trained" not in flags_from_scores(tmp_path, values)


@pytest.mark.parametrize(("metric", "raised"), [("descriptor_cosine", True), ("csim", False), ("likeness", False)])
def test_stand_in(tmp_path: Path, metric: str, raised: bool) -> None:
    run = Run(tmp_path, {"robin": character_settings(tmp_path)})
    curate_character(run, "robin", side_px=32)
    evaluate_character(run, "robin", steady)
    write_best(run, "robin", read_best(run, "robin") | {"identity_metric": metric})
    flags = [flag.name for flag in flags_of(gather_subject(run.results, "robin", run.settings["robin"]))]
    assert ("stand-in" in flags) is raised


def test_an_edit_ranks_by_its_error_and_nothing_stands_in(run: Run) -> None:
    subject = gather_subject(run.results, "robin-smiles", run.settings["robin-smiles"])
    assert (subject.best or {})["identity_metric"] == "target_error"
    assert [flag.name for flag in flags_of(subject)] == []


@pytest.mark.parametrize(("low", "high", "raised"), [(-0.05, 0.3, True), (0.01, 0.3, False), (-0.3, 0.0, True)])
def test_a_gain_that_may_be_chance_is_said_to_be(tmp_path: Path, low: float, high: float, raised: bool) -> None:
    run = Run(tmp_path, {"robin": character_settings(tmp_path)})
    curate_character(run, "robin", side_px=32)
    evaluate_character(run, "robin", steady)
    best = read_best(run, "robin")
    best["metrics"]["likeness_over_base"] |= {"low": low, "high": high}
    write_best(run, "robin", best)
    found = {flag.name: flag.text for flag in flags_of(gather_subject(run.results, "robin", run.settings["robin"]))}
    assert ("gain not shown" in found) is raised
    if raised:
        assert "likeness on the report half may be chance" in found["gain not shown"]
