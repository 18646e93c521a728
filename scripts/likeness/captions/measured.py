"""Caption backend without a model: the answer is what was measured, in the words of the miniature's grammar."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from likeness.captions.captioner import Answer, Question
from likeness.captions.facts import FRAMING_WORDS, LIGHT_WORDS, POSE_WORDS, Facts
from likeness.config.captions import CaptionStage
from likeness.store import canonical_json

REFUSALS = {
    "character": "nothing was measured in this photo, such as a face, that holds for all faces in it",
    "edit": "measurements cannot say what an edit changes; set captions.instruction, or caption each pair by hand",
    "style": "nothing was measured that says what the picture shows; choose a model in captions.backend, or caption it by hand",
}


class FactsCaptioner:
    """Answers with measured framing, pose, light and background."""

    is_model: ClassVar[bool] = False

    def __init__(self, stage: CaptionStage, store_root: Path) -> None:
        self._recipe = stage.recipe

    @classmethod
    def fingerprint(cls, stage: CaptionStage, store_root: Path) -> str:
        return "facts"

    def answers(self, questions: Sequence[Question]) -> Iterator[tuple[Question, Answer]]:
        """One answer a question, from its facts alone."""
        for question in questions:
            fields = as_fields(question.facts)
            if self._recipe == "style":
                fields = as_content(fields)
            refused = self._recipe == "edit" or not fields
            yield question, Answer(canonical_json(fields), refusal=REFUSALS[self._recipe] if refused else "")


def as_fields(facts: Facts) -> dict[str, str]:
    """The measured facts as fields; what was not measured is absent."""
    fields = {
        "framing": FRAMING_WORDS.get(facts.framing or ""),
        "pose": POSE_WORDS.get(facts.pose or ""),
        "lighting": LIGHT_WORDS.get(facts.light or ""),
        "background": f"{facts.background} background" if facts.background else None,
    }
    return {name: value for name, value in fields.items() if value}


def as_content(fields: dict[str, str]) -> dict[str, str]:
    """The measured fields under the names of a style's form, without the light, which is manner and not content."""
    named = {"subject": fields.get("framing"), "action": fields.get("pose"), "scene": fields.get("background")}
    return {name: value for name, value in named.items() if value}
