"""What a phase asks of its samples, held against the columns that they will have, before anything is measured.

DuckDB and pyarrow decide, as they do in the job, but take a third of a second to load, and every job reads the
configuration anew. So plain comparisons of well-known columns, which are nearly all there is, are recognised here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from likeness.config.source import KeyPath
from likeness.config.subject import Subject
from likeness.config.train_losses import parts_of
from likeness.errors import UserError

PLAIN_NUMBERS = (
    "background_ssim|brightness|change|clipped|face_fraction|face_px|face_score|hair_area_ratio|hair_delta_e|height_px|"
    "identity_cosine|mask_area|pair_identity|pitch_deg|pose_delta_deg|repeats|roll_deg|sharpness|shift_px|skin_delta_e|"
    "subject_cosine|width_px|yaw_deg"
)
PLAIN_TEXTS = "caption|caption_by|caption_status|face_status|framing|id|light|pose|sample_id|sha256"
"""Columns of photos and pairs alike; others are just as allowed, and looked up."""
_COMPARISON = (
    rf"(({PLAIN_NUMBERS})\s*(<=|>=|<>|!=|<|>|=)(\s+-|\s*)\d+(\.\d+)?"
    rf"|({PLAIN_TEXTS})\s*(<>|!=|=)\s*'[^']*'"
    rf"|({PLAIN_NUMBERS}|{PLAIN_TEXTS})\s+is\s+(not\s+)?null)"
)
_TERM = rf"({PLAIN_NUMBERS}|{PLAIN_TEXTS})(\s+(asc|desc))?(\s+nulls\s+(first|last))?"
PLAIN_CONDITION = re.compile(rf"\s*(true|{_COMPARISON}(\s+(and|or)\s+{_COMPARISON})*)\s*", re.IGNORECASE)
PLAIN_ORDER = re.compile(rf"\s*{_TERM}(\s*,\s*{_TERM})*\s*", re.IGNORECASE)


def wrong_conditions(subject: Subject) -> Iterator[tuple[KeyPath, str]]:
    """Conditions and orders of phases that the phase decision would refuse, each with its key."""
    for name, phase in subject.phases.items():
        place = f"phases.{name}"
        try:
            parts = parts_of(phase, place)
        except UserError:
            continue  # which check_whole has told
        if not PLAIN_CONDITION.fullmatch(parts.where):
            yield from _refused(subject, (*place.split("."), "where"), parts.where)
        if not PLAIN_ORDER.fullmatch(parts.order_by):
            yield from _refused(subject, (*place.split("."), "order_by"), parts.order_by)


def _refused(subject: Subject, key: KeyPath, sql: str) -> Iterator[tuple[KeyPath, str]]:
    """What the decision itself would say of SQL over no samples."""
    from likeness.phases.query import SampleQuery
    from likeness.phases.samples import sample_schema

    query, place = SampleQuery([], sample_schema(subject.kind)), ".".join(map(str, key))
    try:
        (query.answers if key[-1] == "where" else query.ordered)(sql, place)
    except UserError as error:
        yield key, str(error).removeprefix(f"{place}: ")
