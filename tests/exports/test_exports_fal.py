"""fal's flat folder."""

from __future__ import annotations

import pytest
from tests.exports.project import Project


def test_fal_names_roles_and_repeats(photos: Project, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder, _ = photos.export(trainer="fal")
    assert {path.name for path in (folder / "data").iterdir()} == {
        *("ann-1.jpg", "ann-1.txt", "b.png", "b.txt", "turned.png", "turned.txt", "thrice.webp", "thrice.txt"),
        *("thrice--copy2.webp", "thrice--copy2.txt", "thrice--copy3.webp", "thrice--copy3.txt"),
    }
    pairs = Project(tmp_path_factory.mktemp("pairs")).write_pairs()
    folder, _ = pairs.export(trainer="fal")
    assert {path.name for path in (folder / "data").iterdir() if path.name.startswith("02")} == {
        *("02_start.png", "02_start2.jpg", "02_start3.png", "02_end.png", "02.txt"),
    }
