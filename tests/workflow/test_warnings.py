"""What a job warns of reaches who started the run: in the terminal, and on the page of the curation."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.workflow.conftest import draw_photos
from tests.workflow.project import Project

pytestmark = pytest.mark.slow

CONFIG = """\
shards: 1
defaults:
  base_model: miniature
  photo: {min_side_px: 96}
"""
SUBJECT = """\
recipe: style
trigger: dr4wn
photos: data/wren
faces: {backend: none}
masks: {backend: folder, model: null}
held_out: 20
"""


def test_too_few_held_out_and_a_doubtful_caption_are_told(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.configure(CONFIG)
    project.configure(SUBJECT, "wren")
    folder = tmp_path / "data" / "wren"
    draw_photos(folder, count=4, seed=5)
    for path in sorted(folder.glob("*.png")):
        path.with_suffix(".txt").write_text(f"dr4wn, a person before a wall, number {path.stem[-2:]}", encoding="utf-8")
    (folder / "photo-02.txt").write_text("a person before a wall, an oil painting in muted colours", encoding="utf-8")
    run = project.succeed("--", "curate")
    kept = project.log("decide_phases/wren")
    warning = next(line for line in kept.splitlines() if line.startswith("warning: "))
    assert warning.startswith("warning: held_out asks for 20; only ") and " of 4 samples are held out" in warning
    assert run.text.count(warning.replace("warning: ", "warning: wren: ", 1)) == 1
    page = (tmp_path / "results" / "report" / "curate.html").read_text(encoding="utf-8")
    assert "few held out" in page and page.count("caption by hand: ") == 1
    assert project.run("-n", "--", "curate").jobs == set()
