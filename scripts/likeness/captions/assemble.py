"""Make one line from the fields: trigger first, then the framing that was measured, then a clause a field.

The order of the clauses is that of the miniature's grammar (`facts.compose_caption`), so that a caption made of
measurements reads the same by either way.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

from likeness.captions.answer import SMART_QUOTES, without_edge_quotes
from likeness.captions.facts import FRAMING_WORDS
from likeness.captions.prompts import RECIPES
from likeness.config.captions import CaptionStage
from likeness.trigger import trigger_pattern

MARKUP = re.compile(r"[*`#|\\<>{}\[\]~^]+|(?<!\w)_+|_+(?!\w)")
DASHES = re.compile(r"\s+[–—-]+\s+")
LEADING = re.compile(r"\A(?:(?:in|on|at|a|an|the|wearing|dressed)\s+)+", re.IGNORECASE)
PLACEHOLDER = re.compile(r"\[trigger\]|\{trigger\}", re.IGNORECASE)
"""Where other trainers' caption files ask for the trigger."""
WORN = ("wearing", "dressed", "in ", "bare", "no ", "shirtless")


def head_of(stage: CaptionStage) -> str:
    """What every caption of the subject begins with: the trigger, for a character with its class word."""
    return f"{stage.trigger} {stage.class_word}" if stage.recipe == "character" else stage.trigger


def assemble(stage: CaptionStage, fields: Mapping[str, str], framing: str | None) -> str:
    """Make the caption of one photo or pair; `framing` is the measured class (close, half, full) or None.

    The model's own framing is left out: where a framing was measured its word stands, and where none was, nothing
    confirms the model's.
    """
    head = head_of(stage)
    clauses = [FRAMING_WORDS[framing]] if framing and stage.recipe == "character" else []
    for name in RECIPES[stage.recipe].fields:
        clause = without_trigger(stage.trigger, clean(fields.get(name, "")))
        if name == "framing" or not clause:
            continue
        if plain(clause) in {part for earlier in clauses for part in said_in(earlier)}:
            continue
        if name == "clothing" and not clause.lower().startswith(WORN):
            clause = f"wearing {clause}"
        if name == "background" and "background" not in clause.lower() and len(clause.split()) <= 3:
            clause = f"{clause} background"
        clauses.append(clause)
    if stage.recipe == "edit":
        return " ".join([head, *clauses])
    return ", ".join([head, *clauses])


def clean(value: str) -> str:
    """One plain line: ASCII quotes, no markup, no control characters, a small first letter, no full stop at the end.

    Quotes at an edge go only where they enclose the whole line or have no partner.
    """
    text = value.translate(SMART_QUOTES).replace("…", "...")
    text = "".join(" " if unicodedata.category(sign)[0] in "CZ" else sign for sign in text)
    text = DASHES.sub(", ", MARKUP.sub(" ", text))
    text = re.sub(r"\s+([,.;:!?])", r"\1", re.sub(r"(\s*,)+(?=\s|$)", ",", " ".join(text.split())))
    before = None
    while text != before:
        before, text = text, without_edge_quotes(text.strip(" ,;:.-!?"))
    return text[:1].lower() + text[1:] if text[1:2].islower() or text[1:2] == " " else text


def plain(clause: str) -> str:
    """A clause in small letters and without the preposition or article before it, for comparing."""
    return LEADING.sub("", clause.strip()).lower()


def said_in(clause: str) -> set[str]:
    """What a clause says: all of it, and what stands between its commas, each made plain."""
    return {plain(clause), *(plain(part) for part in clause.split(","))}


def without_trigger(trigger: str, text: str) -> str:
    return clean(trigger_pattern(trigger).sub(" ", text))


def with_trigger(stage: CaptionStage, text: str) -> str:
    """Put the trigger into a hand's caption: for its placeholder, else before one that has it nowhere."""
    text = PLACEHOLDER.sub(lambda _: stage.trigger, text)
    if trigger_pattern(stage.trigger).search(text):
        return text
    joined = stage.recipe == "edit" or text.lower().startswith(stage.class_word.lower())
    return f"{stage.trigger} {text}" if joined else f"{stage.trigger}, {text}"
