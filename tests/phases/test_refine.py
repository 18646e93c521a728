"""Candidates against planted losses: what is dropped, in which order the rest stays, and what a hand overrules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.phases.fabricate import World, names_kept, row_for, sha
from tests.phases.test_programs import run

from likeness.config.phases import RefineStage
from likeness.errors import UserError
from likeness.phases.refine import Refined, refine_phase
from likeness.tables import CANDIDATES, LOG, MANIFEST, REFINED, read_rows, read_table, write_table

NAMES = [f"s{one}" for one in range(8)]
"""In the order of their planted losses, the best learned first: their percentiles are 6.25, 18.75 … 93.75."""
SHUFFLED = ["s3", "s7", "s0", "s5", "s1", "s6", "s2", "s4"]


def manifest_row(name: str) -> dict[str, Any]:
    row = {"sample_id": name, "image_sha256": sha(name), "mask_sha256": None, "reference_sha256s": []}
    return row | {"caption": f"caption of {name}", "repeats": 1}


def candidate(name: str, always: bool = False) -> dict[str, Any]:
    return manifest_row(name) | {"always": always}


def planted_log(names: list[str] = NAMES) -> list[dict[str, Any]]:
    losses = [1.5**place for place in range(len(names))]
    return [
        {"step": step, "samples": names, "sample_losses": losses, "sample_sigmas": [0.5] * len(names)}
        for step in range(1, 5)
    ]


def refined(
    candidates: list[dict[str, Any]] | None = None,
    previous: list[str] = NAMES,
    log: list[dict[str, Any]] | None = None,
    **stage: Any,
) -> Refined:
    settings = RefineStage(**({"where": "true", "order_by": "", "top": None, "nested": True} | stage))
    rows = [candidate(name) for name in SHUFFLED] if candidates is None else candidates
    return refine_phase(
        rows, [manifest_row(name) for name in previous], planted_log() if log is None else log, settings, "fine"
    )


def kept(found: Refined) -> list[str]:
    return [row["sample_id"] for row in found.manifest]


def fate(found: Refined, name: str) -> dict[str, Any]:
    return next(row for row in found.rows if row["sample_id"] == name)


def test_the_worst_are_dropped_and_the_rest_stays_in_order() -> None:
    found = refined(where="train_loss_percentile < 80")
    assert kept(found) == ["s3", "s0", "s5", "s1", "s2", "s4"]
    assert found.manifest[0] == manifest_row("s3")
    worst = fate(found, "s7")
    assert (worst["kept"], worst["rule"], worst["train_loss_percentile"]) == (False, "where", 93.75)
    assert worst["reason"] == "(train_loss_percentile < 80) is not met: 93.75"
    assert worst["train_loss"] == pytest.approx(1.5**7 / 1.5**3.5, rel=1e-5)
    assert fate(found, "s0") | {"train_loss": 0} == {
        "sample_id": "s0",
        "kept": True,
        "rule": "kept",
        "reason": "",
        "train_loss": 0,
        "train_loss_percentile": 6.25,
    }


def test_an_order_by_losses_comes_first_and_ties_keep_the_candidates_order() -> None:
    assert kept(refined(order_by="train_loss_percentile DESC", top=3)) == ["s7", "s6", "s5"]
    halves = refined(order_by="train_loss_percentile > 50")
    assert kept(halves) == ["s3", "s0", "s1", "s2", "s7", "s5", "s6", "s4"]
    dropped = fate(refined(order_by="train_loss_percentile", top=7), "s7")
    assert (dropped["rule"], dropped["reason"]) == ("top", "place 8 in the order; 7 are kept")


def test_top_counts_what_the_losses_leave() -> None:
    found = refined(where="train_loss_percentile < 80", top=4)
    assert kept(found) == ["s3", "s0", "s5", "s1"]
    assert [fate(found, name)["rule"] for name in ("s2", "s4", "s6", "s7")] == ["top", "top", "where", "where"]


def test_a_hand_keeps_against_losses_and_takes_a_place() -> None:
    rows = [candidate(name, always=name in ("s7", "s4")) for name in SHUFFLED]
    found = refined(rows, where="train_loss_percentile < 80", top=3)
    assert kept(found) == ["s3", "s7", "s4"]
    by_hand = fate(found, "s7")
    assert (by_hand["kept"], by_hand["rule"]) == (True, "always")
    assert by_hand["reason"].startswith("kept by hand (always) against where: (train_loss_percentile < 80)")
    assert "always" not in found.manifest[1]


def test_only_samples_of_the_training_before_have_losses() -> None:
    trained = NAMES[:4]
    loose = refined(previous=trained, where="train_loss_percentile < 99", nested=False)
    assert kept(loose) == ["s3", "s0", "s1", "s2"]
    assert [fate(loose, name)["train_loss_percentile"] for name in NAMES] == [12.5, 37.5, 62.5, 87.5, *[None] * 4]
    assert "did not see it" in fate(loose, "s7")["reason"]
    let_in = refined(previous=trained, where="coalesce(train_loss_percentile, 0) < 80", nested=False)
    assert kept(let_in) == ["s7", "s0", "s5", "s1", "s6", "s2", "s4"]


def test_a_nested_phase_draws_from_the_one_before_and_needs_no_losses() -> None:
    found = refined(previous=["s0", "s1"], log=[])
    assert kept(found) == ["s0", "s1"]
    left_out = fate(found, "s2")
    assert left_out["rule"] == "earlier_phase" and left_out["train_loss"] is None


def test_sql_over_other_columns_is_refused() -> None:
    with pytest.raises(UserError, match=r"phases\.fine\.where: there is no column 'sharpness'"):
        refined(where="sharpness > 3")
    with pytest.raises(UserError, match=r"phases\.fine\.order_by: there is no column 'brightness'"):
        refined(order_by="brightness")


def test_nothing_left_and_no_candidates_are_answers() -> None:
    assert kept(refined(where="train_loss_percentile < 0")) == []
    nobody = refined([])
    assert nobody.manifest == [] and nobody.rows == []


# ---- candidates, as the decision writes them ---------------------------------------------------------------------------


def world_of(count: int = 6) -> World:
    world = World()
    for index in range(count):
        world.add(f"p{index}", sharpness=100.0 + index)
    return world


def test_the_decision_writes_candidates_without_names_and_says_who_is_kept_by_hand() -> None:
    phases: dict[str, dict[str, Any]] = {
        "broad": {"where": "sharpness > 100", "order_by": "sharpness desc"},
        "fine": {"where": "sharpness < 105", "order_by": "sharpness", "always": ["p5"], "never": ["p1"]},
    }
    decision = world_of().decide(phases, refined=("fine",))
    assert [len(rows) for rows in decision.manifests.values()] == [5] and list(decision.manifests) == ["broad"]
    assert names_kept(decision, "fine") == ["p2", "p3", "p4", "p5"]
    assert [row["always"] for row in decision.candidates["fine"]] == [False, False, False, True]
    assert set(decision.candidates["fine"][0]) == {*MANIFEST.schema.names, "always"}
    assert [row_for(decision, name, "fine")["rule"] for name in ("p0", "p1", "p2", "p5")] == [
        *("earlier_phase", "never", "candidate", "always"),
    ]


def test_held_out_samples_are_drawn_from_candidates_and_are_none() -> None:
    decision = world_of().decide({"broad": {}, "fine": {}}, refined=("fine",), held_out=2)
    held = {row["sample_id"] for row in decision.holdout}
    assert len(held) == 2 and not held & {row["sample_id"] for row in decision.candidates["fine"]}
    plain = world_of().decide({"broad": {}, "fine": {}}, held_out=2)
    assert held == {row["sample_id"] for row in plain.holdout}


# ---- the program -------------------------------------------------------------------------------------------------------


def program(folder: Path, output: Path, where: str = "train_loss_percentile < 80") -> Any:
    settings = {"where": where, "order_by": "", "top": None, "nested": True}
    flags = [
        flag for name in ("candidates", "previous", "losses") for flag in (f"--{name}", folder / f"{name}.parquet")
    ]
    outputs = ("--manifest", output / "fine.parquet", "--refined", output / "refined" / "fine.parquet")
    return run("refine_phase.py", settings, "--phase", "fine", *flags, *outputs)


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    write_table(tmp_path / "candidates.parquet", CANDIDATES, [candidate(name) for name in SHUFFLED])
    write_table(tmp_path / "previous.parquet", MANIFEST, [manifest_row(name) for name in NAMES])
    write_table(tmp_path / "losses.parquet", LOG, planted_log())
    return tmp_path


def test_the_program_writes_the_same_bytes_twice_and_a_manifest_of_rows_only(inputs: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        done = program(inputs, tmp_path / name)
        assert done.returncode == 0, done.stderr
        assert done.stdout == "phase fine: 6 of 8 candidates kept\nwork: no items; models loaded 0\n"
    for name in ("fine.parquet", "refined/fine.parquet"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    manifest = tmp_path / "one" / "fine.parquet"
    assert [row["sample_id"] for row in read_rows(manifest, MANIFEST)] == ["s3", "s0", "s5", "s1", "s2", "s4"]
    assert not (read_table(manifest).schema.metadata or {})
    refined_table = tmp_path / "one" / "refined" / "fine.parquet"
    assert [row["sample_id"] for row in read_rows(refined_table, REFINED)] == NAMES
    about = json.loads((read_table(refined_table).schema.metadata or {})[b"likeness"])
    assert about["settings"]["where"] == "train_loss_percentile < 80" and about["stage"] == "refine"


def test_an_empty_phase_is_written_with_a_warning(inputs: Path, tmp_path: Path) -> None:
    done = program(inputs, tmp_path / "out", "train_loss_percentile < 0")
    assert done.returncode == 0 and "warning: phase fine keeps no sample" in done.stderr
    assert read_rows(tmp_path / "out" / "fine.parquet", MANIFEST) == []
