"""A project of one subject's file, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from likeness.config.load import load_project
from likeness.errors import UserError

GOOD = "recipe: character\ntrigger: j4ne\nphotos: data/jane\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config" / "subjects").mkdir(parents=True)
    return tmp_path


def write(folder: Path, text: str, name: str = "jane") -> None:
    """Write a subject's file."""
    (folder / "config" / "subjects" / f"{name}.yaml").write_text(text, encoding="utf-8")


def complaint(folder: Path) -> str:
    """What loading says where it must fail."""
    with pytest.raises(UserError) as caught:
        load_project(folder)
    return str(caught.value)
