"""Whether scores come from the configured recogniser or from the descriptor that stands in for absent weights.

Cheap enough to be asked while the workflow is parsed: files are looked for as the backend looks for them, none is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from likeness.config.base import ModelSource
from likeness.config.evaluation import EvaluationSettings
from likeness.errors import UserError
from likeness.faces.pack_folder import find_pack
from likeness.faces.weights import weight_file
from likeness.store import write_atomically

DESCRIPTOR_BACKEND = "opencv"
DESCRIPTOR_PREFIX = "descriptor"
MEMORY = "recogniser.json"
LOOKS: dict[str, Callable[[ModelSource], Path]] = {
    "insightface": lambda model: find_pack(model.source),
    "yolo": lambda model: weight_file("evaluation.recogniser", model, "the YOLO face weights"),
}
"""How backends look for their files; for others nobody knows, so putting their weights in place starts nothing."""


def is_found(settings: EvaluationSettings) -> bool:
    """Whether nothing stands in for the recogniser now; a revision or sha256 names stored faces without any file."""
    model, look = settings.recogniser, LOOKS.get(settings.recogniser_backend)
    if look is None or model.sha256 or model.revision:
        return True
    try:
        look(model)
    except UserError:
        return False
    return True


def expect(settings: EvaluationSettings, evaluation: Path) -> bool:
    """What scoring below results/<subject>/evaluation is told: whether the recogniser is found.

    Where a recogniser has scored already, it stays what the run was told that started it: neither a machine without the
    files nor one that only schedules starts, or has started, anything for that. Where a descriptor stood in, finding the
    files now starts the scoring.
    """
    note = read_json(evaluation / MEMORY)
    same = note.get("recogniser", settings.recogniser.source) == settings.recogniser.source
    if same and has_scored(evaluation / "base" / "calibration.json"):
        return note.get("is_found", True)
    return is_found(settings)


def remember(expected: bool, settings: EvaluationSettings, evaluation: Path) -> None:
    """Note what scoring is told, and of which recogniser."""
    note = {"is_found": expected, "recogniser": settings.recogniser.source}
    if read_json(evaluation / MEMORY) != note:
        write_atomically(evaluation / MEMORY, (json.dumps(note) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def has_scored(calibration: Path) -> bool:
    """Whether a calibration.json is there and was made by a recogniser."""
    name = read_json(calibration).get("recogniser")
    return name is not None and not is_descriptor(name)


def is_descriptor(name: str) -> bool:
    """Whether the maker of embeddings that tables name is a descriptor, or the backend that has no other."""
    return name.startswith((DESCRIPTOR_PREFIX, f"{DESCRIPTOR_BACKEND}-"))
