"""The manual's tables are generated from the declarations; this fails when they drift."""

from __future__ import annotations

from generate_docs import MARK
from likeness.config.load import HOUSE
from likeness.exports.document import render_exports


def test_the_manual_says_what_the_declarations_say() -> None:
    text = (HOUSE / "docs" / "exports.md").read_text(encoding="utf-8")
    assert text.partition(MARK)[2] == f"\n{render_exports()}", "run `make generate`"


def test_what_trainers_cannot_do_stands_in_the_manual() -> None:
    text = render_exports()
    row = next(line for line in text.splitlines() if line.startswith("| `alpha`"))
    assert [cell.strip() for cell in row.strip("|").split("|")] == ["`alpha`", "✓", "–", "–", "✓", "–", "✓", "≈", "–"]
    assert (
        "- `masked_loss.kind`: musubi-tuner takes no masks; it learns the whole picture (as with `None` here)" in text
    )
