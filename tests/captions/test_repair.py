"""After repair a caption is clean, or it is said what is left; nothing but whole clauses goes."""

from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.captions.conftest import stage_of

from likeness.captions.captioner import Answer
from likeness.captions.interview import judge
from likeness.captions.lint import lint
from likeness.captions.repair import repair
from likeness.store import canonical_json

HEAD = "j4ne person, half body"


@pytest.mark.parametrize(
    ("body", "mended", "deleted"),
    [
        (", in a park, with blue eyes", ", in a park", ["with blue eyes"]),
        (", with blue eyes, in a park", ", in a park", ["with blue eyes"]),
        (". She stands. She has blue eyes. It rains.", ". She stands. It rains.", ["She has blue eyes."]),
        (", sits in a park, with a small nose. It rains", ", sits in a park. It rains", ["with a small nose."]),
        (", red hair; full body; a coat", "; a coat", ["red hair", "full body"]),
        (", a sign of 1,000 words, bald", ", a sign of 1,000 words", ["bald"]),
        (", a coat", ", a coat", []),
    ],
)
def test_deletes_whole_clauses(body: str, mended: str, deleted: list[str]) -> None:
    caption, gone, left = repair(HEAD + body, stage_of(), "half")
    assert (caption, gone, left) == (HEAD + mended, deleted, [])


def test_what_cannot_be_mended_is_left() -> None:
    _, _, left = repair("j4ne the image shows a hat", stage_of("edit"))
    assert {finding.rule for finding in left} == {"verb", "words", "change"}
    caption, gone, left = repair("a park, j4ne", stage_of())
    assert (caption, gone, [finding.rule for finding in left]) == ("a park, j4ne", [], ["trigger"])


def test_a_long_caption_loses_its_last_clauses() -> None:
    stage = stage_of(max_words=8)
    caption, gone, left = repair(f"{HEAD}, one two, three four, five six", stage, "half")
    assert (caption, gone, left) == (f"{HEAD}, one two, three four", ["five six"], [])


WORDS = st.sampled_from(
    [
        *[
            "park",
            "coat",
            "eyes",
            "hair",
            "nose",
            "bald",
            "sitting",
            "full-body",
            "close-up",
            "half",
            "body",
            "J4NE",
            "j4ne",
            "young",
            "woman",
            "the",
            "image",
            "shows",
        ],
        *[
            "moody",
            "vibrant",
            "light",
            "a",
            "of",
            "in",
            "with",
            "replace",
            "make",
            "hat",
            "I'm",
            "sorry",
            "can't",
            "{",
            "}",
            "[",
            "]",
            "**",
            ";",
            ".",
            ",",
            "!",
            "painting",
            "style",
            "1,000",
        ],
        *["face", "mask", "caption:", "beautiful"],
        *("\n", "\t", "\u2028"),
    ]
)
PHRASES = st.lists(WORDS | st.text(string.printable, max_size=6), max_size=14).map(" ".join)


@settings(max_examples=300, deadline=None)
@given(PHRASES, st.sampled_from(["character", "style", "edit"]), st.sampled_from(["close", "half", "full", None]))
def test_repair_ends_clean_or_says_what_is_left(body: str, recipe: str, framing: str | None) -> None:
    stage = stage_of(recipe)
    caption, _, left = repair(f"j4ne person, {body}" if recipe == "character" else f"j4ne {body}", stage, framing)
    assert left == lint(caption, stage, framing)
    if not left:
        assert caption.startswith("j4ne")
        assert caption.lower().split().count("j4ne") <= 1
        assert "\n" not in caption


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["pose", "scene", "clothing", "subject", "action", "change", "background"]), PHRASES, min_size=1
    ),
    st.sampled_from(["character", "style", "edit"]),
    st.sampled_from(["close", "half", "full", None]),
)
def test_any_answer_gives_a_clean_caption_or_none(fields: dict[str, str], recipe: str, framing: str | None) -> None:
    stage = stage_of(recipe)
    draft = judge(Answer(canonical_json(fields)), stage, framing)
    assert bool(draft.caption) != bool(draft.complaints)
    if draft.caption:
        assert lint(draft.caption, stage, framing) == []
        assert draft.caption.startswith("j4ne")
        assert draft.caption.lower().count("j4ne") == 1
        assert len(draft.caption.splitlines()) == 1
