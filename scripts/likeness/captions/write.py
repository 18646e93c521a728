"""Write one line of text for every photo or pair: a sidecar wins over captions.csv, which wins over the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from likeness.captions.facts import Facts, compose_caption
from likeness.config.captions import CaptionStage
from likeness.store import Store

VERSION = 1


def one_line(text: str) -> str:
    return " ".join(text.split())


def hand_caption(stage: CaptionStage, name: str, table_caption: str | None) -> tuple[str, str] | None:
    """The caption that a person wrote and where: sidecar, captions.csv, or the pair table; None where there is none."""
    if name in stage.sidecars:
        text = one_line(Path(stage.sidecars[name]).read_text(encoding="utf-8-sig"))
        if text:
            return text, "sidecar"
    if name in stage.edits:
        return one_line(stage.edits[name]), "captions.csv"
    if table_caption and one_line(table_caption):
        return one_line(table_caption), "table"
    return None


def with_trigger(stage: CaptionStage, text: str) -> str:
    """Put the trigger first, once."""
    return text if text.lower().startswith(stage.trigger.lower()) else f"{stage.trigger} {text}"


def write_captions(
    stage: CaptionStage, images: Iterable[Mapping[str, Any]], quality: Iterable[Mapping[str, Any]], store: Store
) -> list[dict[str, Any]]:
    """Caption every usable row of an index table; returns CAPTIONS rows."""
    measured = {row["id"]: row for row in quality if row["face"] in (0, None)}
    rows = []
    for image in images:
        if image["status"] != "ok":
            continue
        found = hand_caption(stage, image["id"], image.get("caption")) or machine_caption(
            stage, measured.get(image["id"], {})
        )
        caption, by = found
        status = "ok" if caption else "needs_review"
        reason = "" if caption else "no caption could be written; add a sidecar .txt or a line in captions.csv"
        rows.append(
            {
                "id": image["id"],
                "caption": with_trigger(stage, caption) if caption else "",
                "caption_by": by,
                "violations": [],
                "repairs": [],
                "status": status,
                "reason": reason,
            }
        )
    return rows


def machine_caption(stage: CaptionStage, quality: Mapping[str, Any]) -> tuple[str, str]:
    """A caption composed of what was measured."""
    if stage.captions.instruction:
        return stage.captions.instruction, "instruction"
    facts = Facts(**{key: quality.get(key) for key in ("framing", "pose", "light", "background")})
    return compose_caption(f"{stage.trigger} {stage.class_word}", facts), "facts"
