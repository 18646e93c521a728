"""One fabricated run for all tests of the report that only read it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.report.fabricate import Run, fabricate

from likeness.report.gather import gather_curation, gather_subject
from likeness.report.page import render_curation, render_report
from likeness.report.pictures import BUDGET_BYTES, Pictures


def report_of(run: Run, subjects: Sequence[str] | None = None, budget_bytes: int = BUDGET_BYTES) -> str:
    """The report's HTML."""
    names = run.settings if subjects is None else subjects
    gathered = [gather_subject(run.results, name, run.settings[name]) for name in names]
    return render_report(gathered, Pictures(run.store, budget_bytes))


def curation_of(run: Run, subjects: Sequence[str] | None = None) -> str:
    """The curation page's HTML."""
    names = run.settings if subjects is None else subjects
    return render_curation(
        [gather_curation(run.results, name, run.settings[name]) for name in names], Pictures(run.store)
    )


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder: Path = tmp_path_factory.mktemp("report")
    return fabricate(folder)


@pytest.fixture(scope="session")
def page(run: Run) -> str:
    return report_of(run)
