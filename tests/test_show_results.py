"""What a finished run says at its end: where things lie, and one line a subject."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import show_results


def test_every_subject_is_told_by_its_ranking_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = {"csim": {"value": 0.8}, "csim_over_base": {"value": 0.75}, "grain": {"value": 1.0}}
    chosen = {"variant": "main", "phase": "last", "step": 30, "identity_metric": "csim", "metrics": metrics}
    nothing = {"variant": None, "rule": "no choice: csim (no_face)"}
    for name, best in (("jane", chosen), ("joe", nothing)):
        (tmp_path / "results" / name).mkdir(parents=True)
        (tmp_path / "results" / name / "best.json").write_text(json.dumps(best))
    monkeypatch.setattr("sys.argv", ["show_results.py", "--folder", str(tmp_path)])
    show_results.main()
    lines = capsys.readouterr().out.split("\n")
    assert lines[1].endswith("results/report/index.html") and lines[2].endswith("results/scores.parquet")
    assert lines[3].endswith("main, phase last, step 30; on the report half csim +0.800, csim_over_base +0.750")
    assert lines[4].endswith("nothing chosen: csim (no_face)")
