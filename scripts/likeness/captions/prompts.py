"""What a model is asked, by recipe: the fields of its answer and the words around them.

The prompt names neither trigger nor measurements, so that changing those asks nothing again. The fields keep apart what
a caption may say from what it must not: what is never asked for need not be deleted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """Fields in the order in which the caption says them, each with its meaning; what comes before and after them."""

    task: str
    fields: dict[str, str]
    rules: str


CHARACTER = Recipe(
    task="Look at this photo of a {class_word} and fill in the form below, for a caption.",
    fields={
        "framing": "one of: close portrait, half body, full body",
        "pose": "how body and head are turned and held",
        "clothing": "garments and accessories with their colours",
        "action": "what is being done",
        "props": "things held or used",
        "lighting": "the light and where it comes from",
        "scene": "the place",
        "background": "what is seen behind",
    },
    rules=(
        "Describe only what could differ in another photo of the same {class_word}. Say nothing of eyes, nose, lips, "
        "cheeks, jaw, shape of the face, skin, hair, beard, age, origin or looks, and do not guess who it is."
    ),
)
STYLE = Recipe(
    task="Look at this picture and fill in the form below: what it shows, as if it were plain reality.",
    fields={
        "subject": "who or what is shown, and how many",
        "action": "what is being done",
        "objects": "other things that are seen",
        "scene": "the place",
    },
    rules=(
        "Name the content and never the manner: nothing of style, medium, technique, mood, colours' character, light, "
        "lens or artist, and no judgement."
    ),
)
EDIT = Recipe(
    task=(
        "The first picture was edited; the last picture is the result. Pictures between them, if any, were used as "
        "references. Fill in the form below."
    ),
    fields={
        "change": "one instruction that turns the first picture into the last, beginning with a verb such as replace, "
        "add, remove, change, make or turn"
    },
    rules="Name only what changes. Do not describe the whole picture, and do not mention that pictures were compared.",
)
RECIPES = {"character": CHARACTER, "style": STYLE, "edit": EDIT}
ANSWER_FORM = (
    "Answer with one JSON object on a single line and nothing else: no introduction, no markdown. Every value is a short "
    "English phrase without a full stop; it is an empty string where there is nothing to say. The keys are:"
)


def first_prompt(recipe: str, class_word: str) -> str:
    """The prompt of the first ask."""
    form = RECIPES[recipe]
    keys = [f"- {name}: {meaning}" for name, meaning in form.fields.items()]
    text = "\n".join([form.task, ANSWER_FORM, *keys, form.rules])
    return text.replace("{class_word}", class_word)


def next_prompt(recipe: str, class_word: str, complaints: Sequence[str]) -> str:
    """The prompt of a further ask: the first one, and what was wrong with the last answer."""
    listed = "\n".join(f"- {complaint}" for complaint in complaints)
    return (
        f"{first_prompt(recipe, class_word)}\nAn earlier answer could not be used, because of:\n{listed}\n"
        "Avoid this, and answer with the JSON object only."
    )
