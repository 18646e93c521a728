"""Keep the instructions of an edit alike over the whole set: an edit is learned from one way of saying it.

A shard sees only its own pairs, so this runs in the merge. Instructions are compared by the verb that they begin with.
Where nearly all pairs agree, the few that begin otherwise need review; where they do not, the set holds more than one
edit, and nothing is said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from likeness.captions.lint import rest_of
from likeness.config.captions import CaptionStage

AGREED_SHARE = 0.8
HAND = frozenset({"sidecar", "captions.csv", "table", "instruction"})

Row = dict[str, Any]


def reviewed(rows: Sequence[Row], stage: CaptionStage) -> list[Row]:
    """Rows of the CAPTIONS table, where an edit's instructions that disagree with the set need review.

    Hand-written captions have a voice and are never dropped.
    """
    if stage.recipe != "edit":
        return list(rows)
    verbs = {row["id"]: first_word(row["caption"], stage) for row in rows if row["status"] == "ok"}
    if not verbs:
        return list(rows)
    verb, count = min(Counter(verbs.values()).items(), key=lambda pair: (-pair[1], pair[0]))
    if count < AGREED_SHARE * len(verbs):
        return list(rows)
    return [
        row if verbs.get(row["id"], verb) == verb or row["caption_by"] in HAND else dropped(row, verbs[row["id"]], verb)
        for row in rows
    ]


def first_word(caption: str, stage: CaptionStage) -> str:
    """The word that an instruction begins with, in small letters."""
    return (rest_of(caption, stage).split() or [""])[0].lower().strip(",.;:")


def dropped(row: Row, verb: str, agreed: str) -> Row:
    reason = (
        f"the instruction begins with {verb!r} where nearly all others begin with {agreed!r}. "
        "Write it into captions.csv, or set captions.instruction for all pairs."
    )
    finding = f"inconsistent: {verb}, the set says {agreed}"
    return row | {
        "caption": "",
        "violations": [*row["violations"], finding],
        "status": "needs_review",
        "reason": reason,
    }
