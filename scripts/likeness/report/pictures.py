"""Pictures inside the page: small files as data, within one budget for the whole page that subjects share fairly.

Pages first say what they want to show, then the budget is handed out in rounds: one picture a subject and round, the
comparisons of all subjects before any contact sheet. So no subject goes without because another has many photos.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from likeness.errors import UserError
from likeness.photos.load import load_photo
from likeness.store import Store

BUDGET_BYTES = 11_000_000
QUALITY = 80
TINY_PX = 64
"""Pictures up to this side keep every pixel and are enlarged by the browser."""


@dataclass(frozen=True)
class Wanted:
    """A picture that a page wants: a photo of the folder by its path, or a generated image by its sha256."""

    side_px: int
    path: str | None = None
    sha256: str | None = None
    mask_sha256: str | None = None


@dataclass(frozen=True)
class Picture:
    """A picture as an address for `src`, or why there is none: 'left out' for want of room, or 'unreadable'."""

    data: str | None
    missing: str = ""
    tiny: bool = False


class Pictures:
    """The pictures of one page by what was wanted; `left_out` counts by subject those for which there was no room."""

    def __init__(self, store: Store, budget_bytes: int = BUDGET_BYTES) -> None:
        self.store = store
        self.left_bytes = budget_bytes
        self.left_out: Counter[str] = Counter()
        self._made: dict[Wanted, Picture] = {}

    def __getitem__(self, wanted: Wanted) -> Picture:
        return self._made[wanted]

    def share(self, wishes: Mapping[str, Sequence[Wanted]]) -> None:
        """Make the wanted pictures of all subjects in rounds, until the budget is spent; the rest is counted.

        A picture that is shown at several places counts at each, since the page repeats it."""
        for place in range(max(map(len, wishes.values()), default=0)):
            for subject, wanted in wishes.items():
                if place < len(wanted):
                    self._add(subject, wanted[place])

    def _add(self, subject: str, wanted: Wanted) -> None:
        picture = self._made.get(wanted)
        if picture is None:
            picture = self._make(wanted) if self.left_bytes > 0 else Picture(None, "left out")
            if picture.data is not None and len(picture.data) > self.left_bytes:
                picture, self.left_bytes = Picture(None, "left out"), 0
            self._made[wanted] = picture
        self.left_bytes = max(0, self.left_bytes - len(picture.data or ""))
        self.left_out[subject] += picture.missing == "left out"

    def _make(self, wanted: Wanted) -> Picture:
        try:
            return encoded(self._read(wanted), wanted.side_px)
        except (UserError, OSError):
            return Picture(None, "unreadable")

    def _read(self, wanted: Wanted) -> Image.Image:
        """The picture as it is shown; what lies outside the mask is dimmed."""
        if wanted.sha256 is not None:
            return Image.open(io.BytesIO(self.store.read_blob(wanted.sha256))).convert("RGB")
        assert wanted.path is not None
        image = Image.fromarray(load_photo(Path(wanted.path)))
        if wanted.mask_sha256 is None:
            return image
        mask = Image.open(io.BytesIO(self.store.read_blob(wanted.mask_sha256))).convert("L")
        shown = reduced(image, wanted.side_px)
        weight_HW1 = 0.3 + 0.7 * np.asarray(mask.resize(shown.size), np.float32)[..., None] / 255
        return Image.fromarray((np.asarray(shown, np.float32) * weight_HW1).astype(np.uint8))


def reduced(image: Image.Image, side_px: int) -> Image.Image:
    """The image no larger than a square of this side."""
    if max(image.size) <= side_px:
        return image
    smaller = image.copy()
    smaller.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    return smaller


def encoded(image: Image.Image, side_px: int) -> Picture:
    """An address that holds the picture: tiny ones without loss, others as JPEG."""
    shown = reduced(image, side_px)
    tiny = max(shown.size) <= TINY_PX
    buffer = io.BytesIO()
    if tiny:
        shown.save(buffer, "PNG", optimize=True)
    else:
        shown.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    kind = "png" if tiny else "jpeg"
    return Picture(f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}", tiny=tiny)
