"""Places in a text that settings fill: a misspelt one would be drawn as it stands, and nobody would notice."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

from likeness.errors import nearest

PLACEHOLDER = re.compile(r"\{\s*[\w-]+\s*\}")
"""A word in braces; the braces of a prompt in JSON hold more than that."""


def checked(text: str, allowed: tuple[str, ...]) -> str:
    """Refuse a text with a word in braces that nothing fills."""
    for found in PLACEHOLDER.findall(text):
        if found not in allowed:
            raise ValueError(f"nothing fills {found}; {nearest(found, allowed)}")
    return text


def check_prompt(text: str) -> str:
    return checked(text, ("{trigger}", "{class}"))


def check_caption(text: str) -> str:
    return checked(text, ("{class_word}",))


PromptText = Annotated[str, AfterValidator(check_prompt)]
"""A prompt in which `{trigger}` and `{class}` are filled."""
CaptionText = Annotated[str, AfterValidator(check_caption)]
"""A caption in which `{class_word}` is filled."""
