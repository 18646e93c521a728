"""Mend a caption by deleting the clauses that break a rule; what cannot be mended so is left to be asked again."""

from __future__ import annotations

import re
from collections.abc import Sequence

from likeness.captions.assemble import head_of
from likeness.captions.lint import Finding, lint
from likeness.config.captions import CaptionStage

SEPARATOR = re.compile(r"(,(?!\d)\s*|;\s*|(?<=[.!?])\s+)")


def repair(caption: str, stage: CaptionStage, framing: str | None = None) -> tuple[str, list[str], list[Finding]]:
    """Delete offending clauses until nothing more can be deleted.

    Returns the caption, the deleted clauses in order, and the findings that are left (none: the caption is good). The
    head (trigger, for characters with the class word) is never deleted.
    """
    head = head_of(stage)
    deleted: list[str] = []
    while findings := lint(caption, stage, framing):
        if not caption.startswith(head):
            break
        body = caption[len(head) :]
        pieces = SEPARATOR.split(body)
        doomed = offending(pieces, findings, len(head))
        if doomed is None:
            break
        mended = head + without(pieces, doomed)
        if mended == caption:
            break
        deleted.append(pieces[doomed].strip())
        caption = mended
    return caption, deleted, lint(caption, stage, framing)


def offending(pieces: Sequence[str], findings: Sequence[Finding], offset: int) -> int | None:
    """Index of the first clause that a finding touches; for a caption that is too long, the last clause."""
    starts = [offset]
    for piece in pieces[:-1]:
        starts.append(starts[-1] + len(piece))
    for finding in findings:
        if finding.start is None or finding.end is None:
            continue
        for index in range(0, len(pieces), 2):
            until = starts[index] + len(pieces[index]) + (len(pieces[index + 1]) if index + 1 < len(pieces) else 0)
            if finding.start < until and finding.end > starts[index]:
                return index if len(pieces) > 1 or pieces[index].strip() else None
    if any(finding.rule == "length" for finding in findings) and len(pieces) > 2:
        return len(pieces) - 1
    return None


def without(pieces: Sequence[str], index: int) -> str:
    """The clauses without one: its separator goes with it, and the full stop that it carried moves to the one before."""
    kept = list(pieces)
    gone = kept[index].rstrip()
    if index == 0:
        return "" if len(kept) < 3 else ("" if kept[1].startswith((",", ";")) else " ") + "".join(_rest(kept))
    del kept[index - 1 : index + 1]
    before = kept[index - 2].rstrip()
    if gone[-1:] in ".!?" and gone and before[-1:] not in ".!?" and index - 1 < len(kept):
        kept[index - 2] = f"{before}."
    return "".join(kept)


def _rest(pieces: Sequence[str]) -> Sequence[str]:
    """What follows a deleted first clause, with the separator that followed it."""
    return pieces[1:] if pieces[1].startswith((",", ";")) else pieces[2:]
