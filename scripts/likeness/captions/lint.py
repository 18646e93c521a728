"""Check one caption against the rules of its recipe; every finding names its rule, the words and where they stand.

Rules for all: one line, the trigger first and once, no preamble, refusal or residue of markup, a length in words, a
framing that agrees with the measured one. Identity: nothing that belongs to the face. Style: what, never how. Edit: an
imperative that names the change. The words are data (`lexicon`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from likeness.captions.assemble import head_of
from likeness.captions.facts import FRAMING_WORDS
from likeness.captions.lexicon import ALLOWED, EDIT_VERBS, FRAMING_TERMS, GENERAL_RULES, RULES, pattern_of, phrase
from likeness.config.captions import CaptionStage
from likeness.trigger import trigger_pattern

LINES = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
RESIDUE = re.compile(r"[{}\[\]<>`|\\]|\*\*|__|^#|\"\s*:|\w\"\s*,\s*\"\w")
MIN_CHANGE_WORDS = 2


@dataclass(frozen=True)
class Finding:
    """One broken rule: the words that break it and their span; `start` is None where no words do (something is missing)."""

    rule: str
    found: str
    start: int | None = None
    end: int | None = None

    def __str__(self) -> str:
        return f"{self.rule}: {self.found}"


def lint(caption: str, stage: CaptionStage, framing: str | None = None) -> list[Finding]:
    """All findings of one caption; `framing` is the measured class (close, half, full), or None where none was measured."""
    return [
        *_form(caption),
        *_trigger(caption, stage),
        *_words(caption, stage),
        *_length(caption, stage),
        *(_framing(caption, stage, framing) if stage.recipe == "character" and framing else ()),
        *(_imperative(caption, stage) if stage.recipe == "edit" else ()),
        *(_stub(caption, stage) if stage.recipe == "style" else ()),
    ]


def masked(caption: str, stage: CaptionStage) -> str:
    """The caption with trigger, head and allowed phrases blanked out, letter by letter, so that places stay."""
    allowed = (*ALLOWED[stage.recipe], *(phrase(one) for one in stage.captions.allow if one.strip()))
    head = head_of(stage) if caption.startswith(head_of(stage)) else ""
    blanked = trigger_pattern(stage.trigger).sub(lambda match: "\0" * len(match[0]), caption)
    blanked = "\0" * len(head) + blanked[len(head) :]
    return pattern_of(allowed).sub(lambda match: "\0" * len(match[0]), blanked)


def _form(caption: str) -> Iterator[Finding]:
    for match in LINES.finditer(caption):
        yield Finding("lines", "more than one line or a control character", match.start(), match.end())
    for match in RESIDUE.finditer(caption):
        yield Finding("residue", match[0].strip(), match.start(), match.end())


def _trigger(caption: str, stage: CaptionStage) -> Iterator[Finding]:
    if not re.match(rf"{re.escape(stage.trigger)}(?!\w)", caption):
        yield Finding("trigger", f"the caption does not begin with {stage.trigger!r}")
    for match in list(trigger_pattern(stage.trigger).finditer(caption))[1:]:
        yield Finding("trigger", f"{stage.trigger!r} stands more than once", match.start(), match.end())


def _words(caption: str, stage: CaptionStage) -> Iterator[Finding]:
    text = masked(caption, stage)
    forbidden = {"forbidden": tuple(phrase(one) for one in stage.captions.forbid if one.strip())}
    for rule, entries in (GENERAL_RULES | RULES[stage.recipe] | forbidden).items():
        for match in pattern_of(entries).finditer(text):
            yield Finding(rule, match[0], match.start(), match.end())


def _length(caption: str, stage: CaptionStage) -> Iterator[Finding]:
    count, least, most = len(caption.split()), stage.captions.min_words, stage.captions.max_words
    if count < least:
        yield Finding("words", f"{count}, at least {least} are asked for")
    if count > most:
        yield Finding("length", f"{count} words, at most {most} are allowed")


def _framing(caption: str, stage: CaptionStage, measured: str) -> Iterator[Finding]:
    text = masked(caption, stage)
    for name, entries in FRAMING_TERMS.items():
        for match in pattern_of(entries).finditer(text) if name != measured else ():
            yield Finding("framing", f"{match[0]}, but measured {FRAMING_WORDS[measured]}", match.start(), match.end())
    if not pattern_of(FRAMING_TERMS[measured]).search(text):
        yield Finding("framing", f"the words {FRAMING_WORDS[measured]!r} are missing")


def _imperative(caption: str, stage: CaptionStage) -> Iterator[Finding]:
    words = rest_of(caption, stage).split()
    first = re.split(r"[^\w]", words[0], maxsplit=1)[0].lower() if words else ""
    if first not in EDIT_VERBS:
        yield Finding("verb", f"{first or 'nothing'} is no imperative such as add, change, make, remove or replace")
    if len(words) <= MIN_CHANGE_WORDS:
        yield Finding("change", "the change is not named")


def _stub(caption: str, stage: CaptionStage) -> Iterator[Finding]:
    rest = re.sub(rf"(?<!\w){re.escape(stage.class_word)}(?!\w)", " ", rest_of(caption, stage), flags=re.IGNORECASE)
    if not re.search(r"\w{2,}", rest):
        yield Finding("stub", "nothing but the trigger")


def rest_of(caption: str, stage: CaptionStage) -> str:
    """The caption after its head and the punctuation that follows."""
    head = head_of(stage) if caption.startswith(head_of(stage)) else stage.trigger
    return caption[len(head) :].lstrip(" ,:;.-") if caption.startswith(head) else caption
