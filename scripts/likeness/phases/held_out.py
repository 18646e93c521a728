"""Remember what was held out, beside the manifests: a by-product, so that a decision that starts anew still finds it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from likeness.phases.decide import HeldOut
from likeness.store import write_atomically

HELD_OUT = "held-out.json"


def read_held_out(path: Path) -> list[HeldOut]:
    """What earlier decisions held out, in order; nothing where there was none or the file cannot be read."""
    try:
        return [
            HeldOut(str(entry["id"]), str(entry["image_sha256"]))
            for entry in json.loads(path.read_text(encoding="utf-8"))
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def write_held_out(path: Path, held: Sequence[HeldOut]) -> None:
    """Write what is held out now, and what was before and may come back."""
    write_atomically(path, (json.dumps([asdict(one) for one in held], indent=1) + "\n").encode())
