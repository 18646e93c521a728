"""Small pictures with structure, for the tests of photos and exports."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from likeness.packs import PackedItems
from likeness.store import Store


def drawn(seed: int, width_px: int = 96, height_px: int = 64) -> np.ndarray:
    """A smooth random picture, (H, W, 3) uint8: blurred noise, different for each seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return np.array(coarse.resize((width_px, height_px), Image.Resampling.BICUBIC))


def nothing_known() -> PackedItems:
    """The packed items of an empty store, which stays so."""
    return PackedItems(Store(Path("nowhere")), "photos")
