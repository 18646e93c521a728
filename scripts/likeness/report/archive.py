"""LoRAs that were published before: what publishing left of them in lora/archive/<first 12 digits of the hash>/.

Their numbers stand in the archived best.json where there is one, else in the card's table of scores, which rounds to
three digits. The newest archive comes first, by the time at which its folder was last written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CARD_ROW = re.compile(
    r"^\|\s*(\w+)\s*\|\s*(-?[\d.]+)\s*\|\s*(-|(-?[\d.]+) to (-?[\d.]+))\s*\|\s*\d+\s*\|$", re.MULTILINE
)
CARD_CHECKPOINT = re.compile(r"^Variant (\S+), phase (\S+), step (\d+):", re.MULTILINE)
CARD_STRENGTH = re.compile(r"Recommended strength: \*\*([\d.]+)\*\*")
CARD_RECOGNISER = re.compile(r"recogniser (.+)\.$", re.MULTILINE)


@dataclass(frozen=True)
class Previous:
    """One LoRA that was published before; `metrics` are {value, low, high} of its report half, `source` best or card."""

    sha12: str
    source: str
    checkpoint: str
    lora_scale: float | None
    recogniser: str | None
    metrics: dict[str, dict[str, float | None]]


def previous_loras(folder: Path, current_sha256: str | None) -> Iterable[Previous]:
    """LoRAs in the archive below `folder`, newest first, without the one that is published now."""
    archive = folder / "archive"
    entries = [path for path in archive.iterdir() if path.is_dir()] if archive.is_dir() else []
    for path in sorted(entries, key=lambda path: (-path.stat().st_mtime_ns, path.name)):
        if path.name == (current_sha256 or "")[:12]:
            continue
        if (path / "best.json").is_file():
            yield from_best(path.name, json.loads((path / "best.json").read_text("utf-8")))
        elif (path / "README.md").is_file():
            yield from_card(path.name, (path / "README.md").read_text("utf-8"))


def from_best(sha12: str, best: dict[str, Any]) -> Previous:
    """Read an archived best.json."""
    metrics = {
        name: {part: found[part] for part in ("value", "low", "high")} for name, found in best["metrics"].items()
    }
    checkpoint = f"{best['variant']}/{best['phase']}/{best['step']}"
    recogniser = best["calibration"].get("recogniser")
    return Previous(sha12, "best", checkpoint, best["lora_scale"], recogniser, metrics)


def from_card(sha12: str, card: str) -> Previous:
    """Read a model card; what it does not say is left out."""
    metrics: dict[str, dict[str, float | None]] = {}
    for name, value, interval, low, high in CARD_ROW.findall(card):
        known = interval != "-"
        metrics[name] = {
            "value": float(value),
            "low": float(low) if known else None,
            "high": float(high) if known else None,
        }
    checkpoint, strength = CARD_CHECKPOINT.search(card), CARD_STRENGTH.search(card)
    recogniser = CARD_RECOGNISER.search(card)
    return Previous(
        sha12,
        "card",
        "/".join(checkpoint.groups()) if checkpoint else "",
        float(strength.group(1)) if strength else None,
        recogniser.group(1) if recogniser else None,
        metrics,
    )
