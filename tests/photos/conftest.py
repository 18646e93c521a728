"""Folders of small pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from tests.photos.pictures import drawn


@pytest.fixture
def photo_at(tmp_path: Path) -> Callable[..., Path]:
    """Write a drawn photo below the test's folder: `photo_at("a/b.png", seed=3)`."""

    def write(name: str, seed: int = 0, width_px: int = 96, height_px: int = 64, **options: object) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn(seed, width_px, height_px)).save(path, **options)
        return path

    return write
