"""What training losses left of a phase: named on the report with their numbers, counted as candidates before training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tests.report.conftest import curation_of, report_of
from tests.report.fabricate import Run, curate_edit, edit_settings, evaluate_edit
from tests.report.reading import Page

from likeness.tables import DECISIONS, REFINED, read_rows, write_table

NAME = "robin-smiles"
WORST = ("03", "05")
"""Of the eight candidates of the second phase, those that the losses leave out; both are in the third phase as well."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The fabricated edit, whose second phase reads the losses of the first, and whose third nests behind it."""
    folder: Path = tmp_path_factory.mktemp("refined")
    phases: dict[str, Any] = {
        "broad": {"steps": 150},
        "clean": {"steps": 100, "where": "train_loss_percentile < 80", "losses_of": "main"},
        "best": {"steps": 50},
    }
    made = Run(folder, {NAME: edit_settings(folder, phases=phases)})
    curate_edit(made, NAME)
    table = made.results / NAME / "phases" / "decisions.parquet"
    rows = read_rows(table, DECISIONS)
    for row in rows:
        row["sample_id"] = f"sample-{row['id']}"
        if row["kept"] and row["phase"] != "broad":
            row |= {"rule": "candidate", "reason": "kept so far"}
    write_table(table, DECISIONS, rows)
    for phase in ("clean", "best"):
        own = [row for row in rows if row["phase"] == phase and row["kept"]]
        made.write(NAME, REFINED, [refined_row(row, phase) for row in own], f"phases/refined/{phase}")
    evaluate_edit(made, NAME)
    return made


def refined_row(row: dict[str, Any], phase: str) -> dict[str, Any]:
    lost = row["id"] in WORST
    rule, reason = (
        ("where", "(train_loss_percentile < 80) is not met: 97.5") if phase == "clean" else ("earlier_phase", "out")
    )
    found = {
        "sample_id": row["sample_id"],
        "kept": not lost,
        "rule": rule if lost else "kept",
        "reason": reason if lost else "",
    }
    if phase == "best":
        return found
    place = int(row["id"])
    return found | {
        "train_loss": 1.55 + place / 100 if lost else 0.9,
        "train_loss_percentile": 90.5 + place if lost else 10.0,
    }


def test_what_was_left_out_is_named_with_its_numbers(run: Run) -> None:
    page = Page(report_of(run))
    found = [one for one in page.having("data-source") if one.attributes["data-source"] == "refined"]
    table = pd.read_parquet(run.results / NAME / "phases" / "refined" / "clean.parquet").set_index("sample_id")
    named = [one for one in found if "data-id" in one.attributes]
    assert {one.attributes["data-id"] for one in named} == set(WORST) and len(named) == 4
    for one in named:
        key, digits = one.attributes["data-key"], {"train_loss": 2, "train_loss_percentile": 1}
        value = table.loc[f"sample-{one.attributes['data-id']}", key]
        assert one.text == f"{value:.{digits[key]}f}" and float(one.attributes["value"]) == value
    counts = {one.attributes["data-key"]: one.text for one in found if "data-id" not in one.attributes}
    assert counts == {"clean:candidates": "8", "clean:kept": "6"}
    text = report_of(run)
    assert "What training losses left of clean" in text and "What training losses left of best" not in text
    assert text.index('<th scope="row">05</th>') < text.index('<th scope="row">03</th>')
    assert "Losses are those of main on broad" in text and "(train_loss_percentile &lt; 80) is not met: 97.5" in text


def phase_counts(html: str) -> dict[str, str]:
    found = [one for one in Page(html).having("data-source") if one.attributes["data-source"] == "decisions"]
    return {
        key.partition(":")[2]: one.text for one in found if (key := one.attributes["data-key"]).startswith("phase:")
    }


def test_the_report_counts_what_was_trained_on_and_the_curation_page_candidates(run: Run) -> None:
    assert phase_counts(report_of(run)) == {"broad": "12", "clean": "6", "best": "3"}
    assert phase_counts(curation_of(run)) == {"broad": "12", "clean": "8", "best": "5"}
    assert "phase clean until losses decide" in curation_of(run)
    assert "until losses decide" not in report_of(run)


def test_the_curation_page_reads_nothing_of_a_training(run: Run, tmp_path: Path) -> None:
    before = curation_of(run)
    refined = run.results / NAME / "phases" / "refined"
    refined.rename(tmp_path / "away")
    try:
        assert curation_of(run) == before
    finally:
        (tmp_path / "away").rename(refined)
