"""A switch to write the golden exports anew: `UPDATE_GOLDEN=1 pytest tests/exports`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.exports.project import Project


@pytest.fixture
def update_golden() -> bool:
    return os.environ.get("UPDATE_GOLDEN") == "1"


@pytest.fixture
def photos(tmp_path: Path) -> Project:
    return Project(tmp_path).write_photos()


@pytest.fixture
def pairs(tmp_path: Path) -> Project:
    return Project(tmp_path).write_pairs()


@pytest.fixture
def photo(tmp_path: Path) -> Project:
    return Project(tmp_path).write_photo()
