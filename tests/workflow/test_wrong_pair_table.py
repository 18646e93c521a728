"""A pair table that cannot be read, or is not there, fails in its subject's index job and stops no other subject."""

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
PAIRS = """\
recipe: edit
trigger: r0bin
pairs: {path: data/robin, table: pairs.csv}
phases: {main: {order_by: id}}
"""
PHOTOS = """\
recipe: character
trigger: wr3n
photos: data/wren
phases: {main: {order_by: id}}
"""


def test_a_wrong_or_absent_table_fails_in_its_job_alone(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.configure(CONFIG)
    project.configure(PAIRS, "robin")
    project.configure(PHOTOS, "wren")
    draw_photos(tmp_path / "data" / "wren", count=1, seed=5)
    draw_photos(tmp_path / "data" / "robin", count=2, seed=6)
    table = tmp_path / "data" / "robin" / "pairs.csv"
    table.write_bytes("source;target;caption\nphoto-00.png;photo-01.png;größer\n".encode("cp1252"))
    wanted = ("--keep-going", "results/robin/pairs.parquet", "results/wren/photos.parquet")
    run = project.run(*wanted)
    assert run.code != 0 and run.jobs == {"index_pairs/robin/0", "index_photos/wren/0", "merge_photos/wren/photos"}
    assert "pairs.csv: not UTF-8 text" in project.log("index_pairs/robin/0") and "Traceback" not in run.text

    table.write_text("source;target;caption\nphoto-00.png;photo-01.png;größer\n", encoding="utf-8")
    assert project.succeed(*wanted).jobs == {"index_pairs/robin/0", "merge_photos/robin/pairs"}

    table.unlink()
    run = project.run(*wanted)
    assert run.code != 0 and run.jobs == {"index_pairs/robin/0"}
    assert "pairs[0].table: there is no data/robin/pairs.csv" in project.log("index_pairs/robin/0")
