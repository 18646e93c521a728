"""An edit's instructions over the whole set: stragglers need review, two kinds of edit do not."""

from __future__ import annotations

from typing import Any

from tests.captions.conftest import stage_of

from likeness.captions.consistency import reviewed


def row(number: int, caption: str, by: str = "endpoint") -> dict[str, Any]:
    return {"id": f"p{number}", "caption": caption, "caption_by": by, "violations": [], "status": "ok", "reason": ""}


def states(rows: list[dict[str, Any]], recipe: str = "edit") -> list[str]:
    return [one["status"] for one in reviewed(rows, stage_of(recipe))]


def test_stragglers_need_review() -> None:
    rows = [row(n, "j4ne replace the hat with a cap") for n in range(9)] + [row(9, "j4ne add a cap")]
    assert states(rows) == ["ok"] * 9 + ["needs_review"]
    last = reviewed(rows, stage_of("edit"))[-1]
    assert (last["caption"], last["violations"]) == ("", ["inconsistent: add, the set says replace"])
    assert "captions.csv" in last["reason"]
    assert rows[-1]["status"] == "ok"


def test_a_hand_is_never_overruled() -> None:
    rows = [row(n, "j4ne replace the hat with a cap") for n in range(9)] + [row(9, "j4ne add a cap", "sidecar")]
    assert states(rows) == ["ok"] * 10


def test_two_edits_in_one_set_are_left_alone() -> None:
    rows = [row(n, "j4ne replace the hat") for n in range(7)] + [row(n, "j4ne, add a cap") for n in range(7, 10)]
    assert states(rows) == ["ok"] * 10
    assert states([]) == []


def test_other_recipes_are_left_alone() -> None:
    rows = [row(n, "j4ne person, a hat") for n in range(9)] + [row(9, "j4ne add a cap")]
    assert states(rows, "character") == ["ok"] * 10
