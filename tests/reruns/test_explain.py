"""Jobs behind the decision count as certain only where something else than a manifest starts them."""

from __future__ import annotations

from likeness.reruns.changes import ABSENT, Setting, differences, shown
from likeness.reruns.dry_run import PlannedJob
from likeness.reruns.explain import certain_jobs


def job(name: str, reason: str) -> PlannedJob:
    return PlannedJob(name, reason, f"python x > results/.logs/{name}.log 2>&1")


def renewed(*paths: str) -> str:
    return f"Input files updated by another job: {', '.join(paths)}"


INDEX = job("index_photos/jane/0", "Updated input files: data/a.jpg")
DECIDE = job("decide_phases/jane", renewed("results/jane/photos.parquet"))
ENCODE = job("encode_samples/jane/main", renewed("results/jane/phases/main.parquet"))
TRAIN = job(
    "train_lora/jane/main/main", renewed("results/jane/phases/main.parquet", "results/jane/encoded/main.parquet")
)
BASE = job("score_base/jane", renewed("results/jane/phases/holdout.parquet"))
SCORE = job("score_checkpoints/jane/main/main", renewed("results/jane/steps.json", "results/jane/base.parquet"))
PAGE = job("write_report", renewed("results/jane/phases/decisions.parquet", "results/jane/published.json"))
MAKERS = {
    "results/jane/photos.parquet": INDEX,
    "results/jane/phases/main.parquet": DECIDE,
    "results/jane/phases/holdout.parquet": DECIDE,
    "results/jane/phases/decisions.parquet": DECIDE,
    "results/jane/encoded/main.parquet": ENCODE,
    "results/jane/steps.json": TRAIN,
    "results/jane/base.parquet": BASE,
    "results/jane/published.json": SCORE,
}


def test_a_manifest_alone_starts_nothing_for_sure() -> None:
    jobs = [INDEX, DECIDE, ENCODE, TRAIN, BASE, SCORE, PAGE]
    assert certain_jobs(jobs, MAKERS) == [INDEX, DECIDE, PAGE]


def test_a_job_with_its_own_reason_takes_those_after_it_along() -> None:
    train = job(TRAIN.name, "Params have changed since last execution: x")
    jobs = [INDEX, DECIDE, ENCODE, train, BASE, SCORE, PAGE]
    assert certain_jobs(jobs, MAKERS | {"results/jane/steps.json": train}) == [INDEX, DECIDE, train, SCORE, PAGE]


def test_other_settings_start_a_job_though_snakemake_names_only_its_inputs() -> None:
    jobs = [INDEX, DECIDE, ENCODE, TRAIN, BASE, SCORE, PAGE]
    assert certain_jobs(jobs, MAKERS, {TRAIN.name}) == [INDEX, DECIDE, TRAIN, SCORE, PAGE]


def test_a_manifest_that_losses_settle_starts_its_readers_where_the_training_before_starts() -> None:
    fine = "results/jane/phases/fine.parquet"
    refine = job(
        "refine_phase/jane/fine", renewed("results/jane/phases/candidates/fine.parquet", "results/jane/log.parquet")
    )
    encode = job("encode_samples/jane/fine", renewed(fine))
    makers = MAKERS | {"results/jane/phases/candidates/fine.parquet": DECIDE, fine: refine}
    undecided = [INDEX, DECIDE, TRAIN, refine, encode]
    assert certain_jobs(undecided, makers | {"results/jane/log.parquet": TRAIN}) == [INDEX, DECIDE]
    train = job(TRAIN.name, "Params have changed since last execution: x")
    sure = [INDEX, DECIDE, train, refine, encode]
    assert certain_jobs(sure, makers | {"results/jane/log.parquet": train}) == sure


def test_settings_are_compared_key_by_key() -> None:
    before = {"a": {"rank": 4, "steps": 10, "old": 1}, "list": [1, 2]}
    now = {"a": {"rank": 8, "steps": 10, "new": None}, "list": [2, 1]}
    assert list(differences(before, now)) == [
        Setting(("a", "new"), ABSENT, None),
        Setting(("a", "old"), 1, ABSENT),
        Setting(("a", "rank"), 4, 8),
        Setting(("list",), [1, 2], [2, 1]),
    ]
    assert str(Setting(("a", "new"), ABSENT, None)) == "a.new: nothing → null"
    assert len(shown("x" * 500)) == 80
