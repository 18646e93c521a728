"""Captions that a person wrote: a sidecar wins over captions.csv, which wins over the pair table, then captions.instruction.

They are brought to one line and get the trigger where it is missing; beyond that no rule changes or drops them, and what
the lint finds in them is only recorded.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from likeness.captions.assemble import with_trigger
from likeness.config.captions import CaptionStage
from likeness.errors import TransientError, UserError

MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


@dataclass(frozen=True)
class HandCaption:
    """A line of text and where it came from: sidecar, captions.csv, table or instruction."""

    caption: str
    by: str


def hand_caption(stage: CaptionStage, image: Mapping[str, Any]) -> HandCaption | None:
    """The caption of one index row that a person wrote, ready to train on; None where there is none.

    An empty sidecar counts as none. Raises UserError for a sidecar that is no text.
    """
    name = image["id"]
    sources = (
        ("sidecar", read_sidecar(Path(stage.sidecars[name])) if name in stage.sidecars else ""),
        ("captions.csv", stage.edits.get(name, "")),
        ("table", image.get("caption") or ""),
        ("instruction", stage.captions.instruction or ""),
    )
    for by, text in sources:
        line = " ".join(text.split())
        if line:
            return HandCaption(with_trigger(stage, line), by)
    return None


def read_sidecar(path: Path) -> str:
    """Read a caption file in UTF-8, or in UTF-16 with a byte-order mark."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise TransientError(f"{path}: the caption file vanished after it was listed. Run again.") from error
    except OSError as error:
        raise TransientError(f"{path}: reading failed ({error.strerror}). Run again when it can be read.") from error
    encoding = next((name for mark, name in MARKS if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding).replace("\0", " ")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: the caption file is not UTF-8 text. Save it as UTF-8.") from error
