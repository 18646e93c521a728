"""Write one line of text for every photo or pair: what a person wrote always wins, and asks no model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from likeness.captions.facts import Facts
from likeness.captions.hand import HandCaption, hand_caption
from likeness.captions.interview import VERSION, Interviewer, Talk
from likeness.captions.lint import lint
from likeness.config.captions import CaptionSettings, CaptionStage
from likeness.errors import UserError
from likeness.photos.images import images_of
from likeness.store import Store, canonical_json, sha256_of_bytes

__all__ = ["VERSION", "CaptionWriter"]

Row = dict[str, Any]
MILLION = 1e6


class CaptionWriter:
    """Captions the usable rows of index tables; `models_loaded`, `asked` and `fingerprint` are for summary and metadata."""

    def __init__(self, stage: CaptionStage, store: Store) -> None:
        if stage.captions.instruction and stage.recipe != "edit":
            raise UserError(
                f"captions.instruction: recipe {stage.recipe!r} has no instruction, so this key would be unused. "
                "Remove it, or write the captions into sidecars or captions.csv."
            )
        self.stage, self.store = stage, store
        self._interviewer: Interviewer | None = None

    @property
    def models_loaded(self) -> int:
        return self._interviewer.models_loaded if self._interviewer else 0

    @property
    def asked(self) -> int:
        """Answers that were newly given, not read from the store."""
        return self._interviewer.asked if self._interviewer else 0

    @property
    def fingerprint(self) -> str | None:
        return self._interviewer.fingerprint if self._interviewer else None

    def rows(self, images: Iterable[Mapping[str, Any]], quality: Iterable[Mapping[str, Any]]) -> list[Row]:
        """CAPTIONS rows of every usable row of an index table; `quality` is the shard's, one row a candidate face.

        Raises TransientError when an endpoint fails, after everything that was paid for is stored.
        """
        candidates: defaultdict[str, list[Facts]] = defaultdict(list)
        for row in quality:
            candidates[row["id"]].append(facts_of(row))
        rows: list[Row] = []
        talks: list[Talk] = []
        for image in images:
            if image["status"] != "ok":
                continue
            name = image["id"]
            measured = common_facts(candidates[name])
            by_hand = hand_caption(self.stage, image)
            if by_hand:
                rows.append(self._hand_row(name, by_hand, measured))
            else:
                talks.append(Talk(name, tuple(images_of(image)), measured))
        return rows + self._machine_rows(talks)

    def _hand_row(self, name: str, found: HandCaption, facts: Facts) -> Row:
        violations = [str(finding) for finding in lint(found.caption, self.stage, facts.framing)]
        return {
            "id": name,
            "caption": found.caption,
            "caption_by": found.by,
            "violations": violations,
            "repairs": [],
            "status": "ok",
            "reason": "",
        }

    def _machine_rows(self, talks: Sequence[Talk]) -> list[Row]:
        if not talks:
            return []
        self._interviewer = self._interviewer or Interviewer(self.stage, self.store)
        self._interviewer.interview(talks)
        return [self._machine_row(talk, self._interviewer.is_model) for talk in talks]

    def _machine_row(self, talk: Talk, by_model: bool) -> Row:
        captions, draft = self.stage.captions, talk.draft
        tokens_in, tokens_out = talk.tokens("tokens_in"), talk.tokens("tokens_out")
        row: Row = {
            "id": talk.id,
            "caption": draft.caption,
            "caption_by": captions.backend,
            "caption_raw": draft.raw,
            "fields": None if draft.fields is None else canonical_json(dict(draft.fields)),
            "violations": list(draft.violations or draft.complaints),
            "repairs": list(draft.repairs),
            "status": "ok" if draft.caption else "needs_review",
            "reason": "" if draft.caption else review_reason(talk, by_model),
        }
        if by_model:
            row |= {
                "asked": len(talk.answers),
                "model": model_name(captions),
                "prompt_sha256": sha256_of_bytes(talk.prompt.encode()),
                "tokens_in": tokens_in,
                "tokens_out": tokens_out,
                "cost_usd": cost_usd(captions, tokens_in, tokens_out),
            }
        return row


def facts_of(row: Mapping[str, Any]) -> Facts:
    """The facts that a row of the QUALITY table measured."""
    return Facts(framing=row["framing"], pose=row["pose"], light=row["light"], background=row["background"])


def common_facts(candidates: Sequence[Facts]) -> Facts:
    """The facts that all candidate faces of a photo share: which of them is the subject is known only after the merge."""
    values = {one.name: {getattr(facts, one.name) for facts in candidates} for one in fields(Facts)}
    return Facts(**{name: found.pop() for name, found in values.items() if len(found) == 1})


def review_reason(talk: Talk, by_model: bool) -> str:
    """Say why a caption needs a person, and what to do."""
    why = talk.stopped or "; ".join(talk.draft.complaints) or "no answer"
    asks = f" after {len(talk.answers)} {'ask' if len(talk.answers) == 1 else 'asks'}" if by_model else ""
    return f"no usable caption{asks} ({why}). Write it into captions.csv, or into a .txt beside the file."


def model_name(captions: CaptionSettings) -> str:
    """The model's name for tables: its id, or a local folder's own name."""
    source = captions.model.source
    local = captions.backend != "endpoint" and (Path(source).is_absolute() or Path(source).expanduser().is_dir())
    return Path(source).name if local else source


def cost_usd(captions: CaptionSettings, tokens_in: int | None, tokens_out: int | None) -> float | None:
    """Cost of a photo's answers in US dollars by the configured prices; None where a price or a count is unknown."""
    if captions.price_in_usd is None or captions.price_out_usd is None or tokens_in is None or tokens_out is None:
        return None
    return (tokens_in * captions.price_in_usd + tokens_out * captions.price_out_usd) / MILLION
