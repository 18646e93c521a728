"""Captions from measured facts: no model, no download, one grammar.

The miniature's base model is trained on this very grammar, so that a caption written from measurements is a sentence
which that model understands.
"""

from __future__ import annotations

from dataclasses import dataclass

FRAMING_WORDS = {"close": "close portrait", "half": "half body", "full": "full body"}
POSE_WORDS = {"front": "facing the camera", "left": "turned left", "right": "turned right"}
LIGHT_WORDS = {"even": "even light", "left": "light from the left", "right": "light from the right", "dim": "dim light"}
BACKGROUND_COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.20, 0.20),
    "green": (0.20, 0.70, 0.30),
    "blue": (0.20, 0.35, 0.90),
    "white": (0.95, 0.95, 0.95),
    "black": (0.08, 0.08, 0.08),
    "grey": (0.50, 0.50, 0.50),
    "yellow": (0.95, 0.85, 0.20),
    "purple": (0.60, 0.25, 0.75),
    "orange": (0.95, 0.55, 0.15),
    "brown": (0.45, 0.30, 0.18),
}


@dataclass(frozen=True)
class Facts:
    """What measurements say of one photo; None where nothing was measured.

    framing: key of FRAMING_WORDS; pose: key of POSE_WORDS, as the viewer sees it; light: key of LIGHT_WORDS;
    background: key of BACKGROUND_COLOURS.
    """

    framing: str | None = None
    pose: str | None = None
    light: str | None = None
    background: str | None = None


def compose_caption(subject: str, facts: Facts) -> str:
    """Write one line: the subject first ("j4ne person"), then each fact that was measured, comma separated."""
    clauses = [subject]
    if facts.framing:
        clauses.append(FRAMING_WORDS[facts.framing])
    if facts.pose:
        clauses.append(POSE_WORDS[facts.pose])
    if facts.light:
        clauses.append(LIGHT_WORDS[facts.light])
    if facts.background:
        clauses.append(f"{facts.background} background")
    return ", ".join(clauses)
