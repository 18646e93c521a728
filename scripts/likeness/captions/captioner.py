"""What a caption backend is: it is asked questions about pictures and gives answers as they come.

A backend knows nothing of triggers, rules or stores: it turns (pictures, prompt) into text. All that follows (parsing,
assembling, lint, repair, asking again) is the same for every backend, and free, so that only answers are stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol

from likeness.backends import load_backend
from likeness.captions.facts import Facts
from likeness.captions.shipped import CAPTIONS
from likeness.config.captions import CaptionStage
from likeness.photos.images import ImageRef


@dataclass(frozen=True)
class Question:
    """One thing to ask: the pictures in order (of a pair: source, references, target), the prompt, what was measured."""

    images: tuple[ImageRef, ...]
    prompt: str
    facts: Facts = field(default_factory=Facts)

    @property
    def content(self) -> list[str]:
        """What the answer depends on beside settings and model: the pictures' bytes and the prompt."""
        return [*(image.sha256 for image in self.images), self.prompt]


@dataclass(frozen=True)
class Answer:
    """What the model said; `refusal` is the reason when asking again would be in vain. Token counts where known.

    `truncated`: the model had not ended when it reached `captions.max_new_tokens`.
    """

    text: str
    tokens_in: int | None = None
    tokens_out: int | None = None
    refusal: str = ""
    truncated: bool = False


@dataclass(frozen=True)
class Unanswered:
    """A question that could not be put (a broken photo, a rejected or forbidden request): nothing was paid, nothing is stored."""

    reason: str


class Captioner(Protocol):
    """A caption backend; constructing it loads the model."""

    is_model: ClassVar[bool]
    """Whether answers cost something: such answers are stored, and unusable ones are asked for again."""

    def __init__(self, stage: CaptionStage, store_root: Path) -> None: ...

    @classmethod
    def fingerprint(cls, stage: CaptionStage, store_root: Path) -> str:
        """What the model is, found without loading it."""
        ...

    def answers(self, questions: Sequence[Question]) -> Iterator[tuple[Question, Answer | Unanswered]]:
        """Answer in any order; TransientError or UserError only after everything that was paid for has been given."""
        ...


def captioner_class(name: str) -> type[Captioner]:
    """The backend of that name; raises UserError with the nearest known one."""
    return load_backend("captions", name, CAPTIONS)
