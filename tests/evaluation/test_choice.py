"""The choice: floors, standard errors, stand-ins, and that the report half is never looked at."""

from __future__ import annotations

import numpy as np
import pytest

from likeness.config.evaluation import ChoiceSettings, ChoiceStage, Pick
from likeness.errors import UserError
from likeness.evaluation.choice import best_record, finalists, rank, recommended_scale
from likeness.evaluation.scores import BASE_CHECKPOINT, Checkpoint, Scores

PROMPTS = ("a", "b", "c", "d", "e", "f")


def row_of(variant, step, prompt_id, seed, metric, value, **changes):
    phase = changes.pop("phase", "" if variant == "base" else "main")
    row = {
        "subject": "jane",
        "variant": variant,
        "phase": phase,
        "step": step,
        "lora_sha256": "" if variant == "base" else f"sha-{variant}-{phase}-{step}",
        "base_model": "model",
        "lora_scale": 1.0,
        "prompt_id": prompt_id,
        "source_id": "",
        "prompt": prompt_id,
        "seed": seed,
        "split": "select",
        "image": "image",
        "metric": metric,
        "value": value,
        "status": "ok" if value is not None else "no_face",
        "metric_version": "1",
    }
    return row | changes


def rows_of(variant, step, metric, mean, rng=None, noise=0.0, **changes):
    """Rows over 6 prompts and 2 seeds whose cluster means are spread around `mean`."""
    seeds = (3, 4) if changes.get("split") == "report" else (1, 2)
    return [
        row_of(
            variant,
            step,
            prompt,
            seed,
            metric,
            mean + (float(rng.normal(0, noise)) if rng is not None else 0.0),
            **changes,
        )
        for prompt in PROMPTS
        for seed in seeds
    ]


def stage_of(recipe="character", pick=None, finalists=3, **choice):
    return ChoiceStage(choice=ChoiceSettings(**choice), finalists=finalists, recipe=recipe, pick=pick)


def test_best_mean_wins_when_the_others_are_clearly_worse():
    rows = [
        row for step, mean in ((250, 0.3), (500, 0.9), (750, 0.5)) for row in rows_of("main", step, "likeness", mean)
    ]
    ranking = rank(Scores(rows), stage_of())
    assert ranking.chosen == ranking.best == Checkpoint("main", "main", 500)
    assert [checkpoint.step for checkpoint in ranking.ranked] == [500, 750, 250]


def test_earliest_within_one_standard_error_is_taken_and_beyond_it_is_not():
    noise = np.array([0.02, -0.02, 0.02, -0.02, 0.02, -0.02])
    error = float(noise.std(ddof=1) / np.sqrt(6))
    for lead, expected in ((0.9 * error, 250), (1.1 * error, 500)):
        rows = [row_of("main", 500, prompt, 1, "likeness", 0.8) for prompt in PROMPTS]
        rows += [
            row_of("main", 250, prompt, 1, "likeness", 0.8 - lead + one)
            for prompt, one in zip(PROMPTS, noise, strict=True)
        ]
        assert rank(Scores(rows), stage_of()).chosen.step == expected


def test_earliest_goes_by_phase_then_step_over_all_variants():
    rows = []
    for variant, phase, step in (("a", "one", 500), ("a", "two", 100), ("b", "one", 250)):
        rows += rows_of(variant, step, "likeness", 0.8, phase=phase)
    assert rank(Scores(rows), stage_of()).chosen == Checkpoint("b", "one", 250)


@pytest.mark.parametrize(
    ("metric", "limit", "good", "bad"),
    [
        ("detected", {"min_detected": 0.8}, 1.0, 0.5),
        ("bleed_csim", {"max_bleed": 0.5}, 0.1, 0.9),
        ("background_ssim", {"min_background_ssim": 0.6}, 0.9, 0.3),
        ("diversity", {"min_diversity": 0.5}, 0.3, 0.1),
        ("clip_score", {"min_clip_score": 0.1}, 0.7, 0.5),
        ("csim", {"min_csim": 0.4}, 0.6, 0.2),
    ],
)
def test_each_floor_excludes_a_checkpoint_below_it_and_keeps_one_above(metric, limit, good, bad):
    rows = rows_of("base", 0, "diversity", 0.4) + rows_of("base", 0, "clip_score", 0.72)
    for step, likeness, value in ((250, 0.5, good), (500, 0.9, bad)):
        rows += rows_of("main", step, "likeness", likeness) + rows_of("main", step, metric, value)
    ranking = rank(Scores(rows), stage_of(**limit))
    assert ranking.chosen.step == 250 and ranking.allowed == (Checkpoint("main", "main", 250),)
    assert rank(Scores(rows), stage_of(**dict.fromkeys(limit))).chosen.step == 500


def test_floors_that_nobody_keeps_are_named_and_not_applied():
    rows = rows_of("main", 250, "likeness", 0.5) + rows_of("main", 250, "detected", 0.1)
    record = best_record(rows, stage_of(), {})
    assert record["step"] == 250 and "no checkpoint keeps all floors: min_detected" in record["rule"]


def test_a_floor_that_everybody_misses_takes_no_other_with_it():
    """A style's prompts show no people: that no face is found must not let a collapsed checkpoint through."""
    rows = rows_of("base", 0, "diversity", 0.3)
    for step, likeness, diversity in ((500, 0.7, 0.28), (1000, 0.9, 0.01)):
        rows += rows_of("main", step, "likeness", likeness) + rows_of("main", step, "diversity", diversity)
        rows += rows_of("main", step, "detected", 0.0)
    ranking = rank(Scores(rows), stage_of())
    assert ranking.chosen.step == 500 and ranking.waived == ("min_detected",)
    record = best_record(rows, stage_of(), {})
    assert "keeps all floors: min_detected; 1 checkpoints missed a floor" in record["rule"]


def test_where_no_checkpoint_keeps_what_some_keep_no_floor_is_applied():
    rows = rows_of("base", 0, "diversity", 0.3)
    for step, likeness, diversity, detected in ((500, 0.7, 0.01, 1.0), (1000, 0.9, 0.3, 0.0)):
        rows += rows_of("main", step, "likeness", likeness) + rows_of("main", step, "diversity", diversity)
        rows += rows_of("main", step, "detected", detected)
    ranking = rank(Scores(rows), stage_of())
    assert ranking.chosen.step == 1000 and ranking.waived == ("min_detected", "min_diversity")


def test_image_without_a_face_counts_as_zero_in_the_ranking():
    rows = rows_of("main", 250, "likeness", 0.7)
    rows += [row_of("main", 500, prompt, 1, "likeness", 0.9 if prompt == "a" else None) for prompt in PROMPTS]
    assert rank(Scores(rows), stage_of()).chosen.step == 250


def test_descriptor_stands_in_and_is_named():
    rows = [row for metric in ("likeness", "csim") for row in rows_of_nulls(metric, "no_weights: pack")]
    rows += rows_of("main", 250, "descriptor_cosine", 0.4) + rows_of("main", 500, "descriptor_cosine", 0.6)
    record = best_record(rows, stage_of(), {})
    assert record["step"] == 500 and record["identity_metric"] == "descriptor_cosine"
    assert "descriptor_cosine stands in for likeness" in record["rule"]


def rows_of_nulls(metric, status):
    return [row_of("main", 250, prompt, 1, metric, None, status=status) for prompt in PROMPTS]


def test_without_any_identity_there_is_no_choice_but_a_reason():
    rows = [
        row for metric in ("likeness", "csim", "descriptor_cosine") for row in rows_of_nulls(metric, "no_weights: x")
    ]
    record = best_record(rows, stage_of(), {"genuine": None})
    assert record["variant"] is None and record["lora_sha256"] is None and record["metrics"] == {}
    assert record["rule"].startswith("no choice") and "no_weights: x" in record["rule"]
    assert best_record([], stage_of(), {})["rule"] == "no choice: there is no checkpoint to choose from"


def test_prompts_that_a_metric_is_not_meant_for_explain_no_missing_choice():
    rows = rows_of_nulls("csim", "no_face") + rows_of_nulls("csim", "not_applicable: csim is not measured there")
    rule = best_record(rows, stage_of(), {})["rule"]
    assert "csim (no_face)" in rule and "not_applicable" not in rule
    only = best_record(rows_of_nulls("csim", "not_applicable: x"), stage_of(), {})["rule"]
    assert "csim (not_applicable: x)" in only


def test_edit_takes_the_lowest_error_and_clusters_by_source():
    rows = []
    for step, value in ((10, 0.3), (20, 0.05), (30, 0.2)):
        for prompt, source in (("p0", "s0"), ("p1", "s0"), ("p2", "s1")):
            rows.append(row_of("main", step, prompt, 1, "target_error", value, source_id=source))
            rows.append(row_of("main", step, prompt, 3, "target_error", value, source_id=source, split="report"))
    record = best_record(rows, stage_of("edit"), {})
    assert record["step"] == 20 and record["metrics"]["target_error"]["n"] == 2


def test_pick_wins_numbers_stay_and_an_unknown_pick_is_refused():
    rows = [row for step, mean in ((250, 0.3), (500, 0.9)) for row in rows_of("main", step, "likeness", mean)]
    rows += [row for step in (250, 500) for row in rows_of("main", step, "likeness", step / 1000, split="report")]
    record = best_record(rows, stage_of(pick=Pick(variant="main", phase="main", step=250)), {})
    assert (record["step"], record["picked_by_hand"]) == (250, True)
    assert record["metrics"]["likeness"]["value"] == pytest.approx(0.25)
    assert "the rule would take main/main/500" in record["rule"]
    with pytest.raises(UserError, match="main/main/250"):
        best_record(rows, stage_of(pick=Pick(variant="main", phase="main", step=300)), {})


def test_best_json_has_exactly_the_documented_keys():
    rows = rows_of("base", 0, "likeness", 0.0) + rows_of("base", 0, "likeness", 0.1, split="report")
    for step in (250, 500):
        rows += rows_of("main", step, "likeness", 0.7) + rows_of("main", step, "likeness", 0.6, split="report")
    calibration = {"genuine": 0.8, "impostor": 0.1, "n_genuine": 5, "n_impostor": 6, "recogniser": "r"}
    record = best_record(rows, stage_of(), calibration)
    documented = (
        "variant phase step lora_scale lora_sha256 rule identity_metric picked_by_hand metrics runners_up calibration"
    )
    assert list(record) == documented.split()
    assert record["metrics"]["likeness"] == {
        "value": pytest.approx(0.6),
        "low": pytest.approx(0.6),
        "high": pytest.approx(0.6),
        "n": 6,
    }
    assert record["metrics"]["likeness_over_base"]["value"] == pytest.approx(0.5)
    assert record["calibration"] == calibration and [one["step"] for one in record["runners_up"]] == [500]


def test_finalists_are_the_best_and_the_chosen_one():
    rng = np.random.default_rng(0)
    rows = rows_of("main", 100, "likeness", 0.795, rng, 0.02)
    for step, mean in ((200, 0.8), (300, 0.802), (400, 0.801), (500, 0.2)):
        rows += rows_of("main", step, "likeness", mean, rng, 0.001)
    scores, stage = Scores(rows), stage_of(finalists=2)
    ranking = rank(scores, stage)
    found = finalists(ranking, stage, scores.candidates)
    assert set(ranking.ranked[:2]) | {ranking.chosen} == set(found) and len(found) in (2, 3)


def test_recommended_strength_is_the_nearest_to_one_that_is_as_good():
    checkpoint = Checkpoint("main", "main", 250)
    rows = [
        row
        for scale, mean in ((0.6, 0.3), (1.0, 0.6), (1.2, 0.9), (1.5, 0.9))
        for row in rows_of("main", 250, "likeness", mean, lora_scale=scale)
    ]
    assert recommended_scale(Scores(rows), checkpoint, "likeness", stage_of()) == 1.2
    assert recommended_scale(Scores(rows[:24]), checkpoint, "likeness", stage_of()) == 1.0


@pytest.mark.parametrize(("bleed_at_1", "expected"), [(0.3, 1.2), (0.6, 1.5)])
def test_recommended_strength_keeps_the_floors_that_strength_one_keeps(bleed_at_1, expected):
    checkpoint = Checkpoint("main", "main", 250)
    rows = []
    for scale, mean, bleed in ((1.0, 0.5, bleed_at_1), (1.2, 0.6, 0.45), (1.5, 0.9, 0.95)):
        rows += rows_of("main", 250, "likeness", mean, lora_scale=scale)
        rows += rows_of("main", 250, "bleed_csim", bleed, lora_scale=scale)
    assert recommended_scale(Scores(rows), checkpoint, "likeness", stage_of(max_bleed=0.5)) == expected


def test_hiding_faces_gains_nothing_even_below_strangers():
    shown = [
        row_of("main", 250, prompt, 1, "likeness", value)
        for prompt, value in zip("abc", (-0.2, -0.1, -0.15), strict=True)
    ]
    hidden = [
        row_of("main", 500, prompt, 1, "likeness", value)
        for prompt, value in zip("abc", (None, None, -0.1), strict=True)
    ]
    ranking = rank(Scores(shown + hidden), stage_of(standard_errors=0))
    assert ranking.best == Checkpoint("main", "main", 250)
    assert ranking.means[Checkpoint("main", "main", 500)] == {"a": -0.2, "b": -0.2, "c": -0.1}


def test_what_a_hand_picked_beside_the_finalists_has_the_numbers_of_the_select_half():
    rows = rows_of("base", 0, "likeness", 0.0) + rows_of("base", 0, "likeness", 0.1, split="report")
    rows += rows_of("main", 250, "likeness", 0.5) + rows_of("main", 500, "likeness", 0.9)
    rows += rows_of("main", 500, "likeness", 0.8, split="report")
    record = best_record(rows, stage_of(pick=Pick(variant="main", phase="main", step=250)), {})
    assert record["metrics"]["likeness"]["value"] == record["metrics"]["likeness_over_base"]["value"] == 0.5
    assert record["rule"].endswith("its numbers are the select half's, since it was not drawn on the report half")
    usual = best_record(rows, stage_of(), {})
    assert usual["metrics"]["likeness"]["value"] == pytest.approx(0.8) and "select half's" not in usual["rule"]


def test_intervals_end_where_the_metric_does():
    rows = [
        row_of("main", 250, prompt, 1, "detected", value) for prompt, value in zip("abcd", (1, 1, 1, 0), strict=True)
    ]
    found = Scores(rows).estimate(Checkpoint("main", "main", 250), "select", "detected")
    assert (found.value, found.low, found.high) == (0.75, 0.0, 1.0)


def test_poisoned_report_half_changes_no_decision_and_a_poisoned_select_half_does():
    rng = np.random.default_rng(3)
    rows = []
    for split in ("select", "report"):
        rows += rows_of("base", 0, "likeness", 0.0, rng, 0.05, split=split)
        for step, mean in ((250, 0.4), (500, 0.7), (750, 0.9), (1000, 0.6)):
            rows += rows_of("main", step, "likeness", mean, rng, 0.05, split=split)
            rows += rows_of("main", step, "detected", 1.0, split=split)
    decided = ("variant", "phase", "step", "lora_scale", "lora_sha256", "rule", "identity_metric", "picked_by_hand")
    honest = best_record(rows, stage_of(), {})

    def poisoned(split):
        return [row | {"value": 1 - row["value"] if row["split"] == split else row["value"]} for row in rows]

    report = best_record(poisoned("report"), stage_of(), {})
    assert {key: report[key] for key in decided} == {key: honest[key] for key in decided}
    assert report["metrics"] != honest["metrics"]
    assert best_record(poisoned("select"), stage_of(), {})["step"] != honest["step"]


def test_of_30_equal_checkpoints_the_report_is_unbiased_while_the_select_half_flatters():
    """30 checkpoints with the same truth, 300 worlds: selection on 12 images each, report on 12 fresh ones."""
    rng = np.random.default_rng(11)
    truth, spread_prompt, spread_image = 0.6, 0.08, 0.05
    reported, selected = [], []
    for _ in range(300):
        rows = []
        for split, seeds in (("select", (1, 2)), ("report", (3, 4))):
            prompts = rng.normal(truth, spread_prompt, 6)
            values = prompts[None, :, None] + rng.normal(0, spread_image, (30, 6, 2))
            rows += [
                row_of("main", 100 * (k + 1), PROMPTS[p], seeds[s], "likeness", float(values[k, p, s]), split=split)
                for k in range(30)
                for p in range(6)
                for s in range(2)
            ]
        scores = Scores(rows)
        ranking = rank(scores, stage_of())
        reported.append(scores.mean(ranking.chosen, "report", "likeness"))
        selected.append(scores.mean(ranking.best, "select", "likeness"))
    error = np.sqrt(spread_prompt**2 / 6 + spread_image**2 / 12)
    assert abs(np.mean(reported) - truth) < 0.5 * error
    assert np.mean(selected) - truth > 0.5 * error


def test_rows_of_a_distilled_model_take_no_part():
    rows = (
        rows_of("base", 0, "likeness", 0.1)
        + rows_of("main", 250, "likeness", 0.6)
        + rows_of("main", 500, "likeness", 0.3)
    )
    rows += rows_of("main", 500, "likeness", 0.99, base_model="distilled") + rows_of(
        "base", 0, "likeness", 0.5, base_model="distilled"
    )
    scores = Scores(rows)
    assert rank(scores, stage_of()).chosen.step == 250
    assert scores.mean(BASE_CHECKPOINT, "select", "likeness") == pytest.approx(0.1)
