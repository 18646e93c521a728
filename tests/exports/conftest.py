"""A switch to write the golden exports anew: `UPDATE_GOLDEN=1 pytest tests/exports`."""

from __future__ import annotations

import os

import pytest


@pytest.fixture
def update_golden() -> bool:
    return os.environ.get("UPDATE_GOLDEN") == "1"
