"""The door to mask makers: one small protocol, chosen by name.

Images are upright uint8 RGB, axes H rows, W columns, C colour channels; faces are in px of that image.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from likeness.backends import load_backend
from likeness.config.masks import MaskKind, MaskSettings
from likeness.faces.detector import Face
from likeness.masks.shipped import MASKS


class Masker(Protocol):
    """Makes masks; made by `cls(settings, store_root, offline, threads)`, which loads the model or raises UserError.

    `fingerprint(settings, store_root, offline)` of the class names the weights without loading them.
    """

    @classmethod
    def fingerprint(cls, settings: MaskSettings, store_root: Path, offline: bool) -> str: ...

    def mask(self, image_HWC: NDArray[np.uint8], face: Face, kind: MaskKind) -> NDArray[np.bool_]:
        """Return (H, W), True inside."""
        ...


def masker_class(name: str) -> Any:
    """Import the mask maker that `masks.backend` names; raises UserError with the nearest name."""
    return load_backend("masks", name, MASKS)
