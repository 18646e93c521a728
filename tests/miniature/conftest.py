"""Model folders that several tests share, built once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from likeness.miniature.pack import UNTRAINED, build_pack


@pytest.fixture(scope="session")
def trained_pack(miniature: Path) -> Path:
    """The folder of the fully trained packs."""
    return miniature / "pack"


@pytest.fixture(scope="session")
def untrained_pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same files with random weights, at once."""
    folder = tmp_path_factory.mktemp("miniature") / "untrained"
    build_pack(folder, seed=0, effort=UNTRAINED)
    return folder
