"""The losses' word takes the place of a candidate's, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from likeness.decisions import settled_decisions
from likeness.errors import UserError
from likeness.tables import DECISIONS, REFINED, write_table

ROWS = [
    {"phase": "broad", "id": "a", "sample_id": "1", "kept": True, "rule": "kept", "reason": "", "position": 0},
    {
        "phase": "fine",
        "id": "a",
        "sample_id": "1",
        "kept": True,
        "rule": "candidate",
        "reason": "so far",
        "position": 1,
    },
    {
        "phase": "fine",
        "id": "b",
        "sample_id": "2",
        "kept": True,
        "rule": "candidate",
        "reason": "so far",
        "position": 0,
    },
    {"phase": "fine", "id": "c", "sample_id": "3", "kept": False, "rule": "where", "reason": "no", "value": 3.0},
    {"phase": "fine", "id": "d", "sample_id": "4", "kept": True, "rule": "always", "reason": "by hand", "position": 2},
]
FATES = [
    {"sample_id": "1", "kept": True, "rule": "kept", "reason": ""},
    {
        "sample_id": "2",
        "kept": False,
        "rule": "where",
        "reason": "95",
        "train_loss": 2.0,
        "train_loss_percentile": 95.0,
    },
    {"sample_id": "4", "kept": True, "rule": "kept", "reason": ""},
]


def test_candidates_are_settled_by_their_losses(tmp_path: Path) -> None:
    write_table(tmp_path / "decisions.parquet", DECISIONS, ROWS)
    with pytest.raises(UserError, match=r"refined/fine\.parquet: the table is missing"):
        settled_decisions(tmp_path)
    write_table(tmp_path / "refined" / "fine.parquet", REFINED, FATES)
    found = [(row["phase"], row["id"], row["kept"], row["rule"], row["reason"]) for row in settled_decisions(tmp_path)]
    assert found == [
        ("broad", "a", True, "kept", ""),
        ("fine", "a", True, "kept", ""),
        ("fine", "b", False, "where", "95"),
        ("fine", "c", False, "where", "no"),
        ("fine", "d", True, "always", "by hand"),
    ]
    assert [row["position"] for row in settled_decisions(tmp_path)] == [0, 1, None, None, 2]


def test_a_table_that_was_left_of_an_earlier_configuration_is_not_read(tmp_path: Path) -> None:
    write_table(tmp_path / "decisions.parquet", DECISIONS, [row for row in ROWS if row["rule"] != "candidate"])
    write_table(tmp_path / "refined" / "fine.parquet", REFINED, [FATES[1] | {"sample_id": "4"}])
    assert all(row["kept"] for row in settled_decisions(tmp_path) if row["id"] == "d")
