"""A hand mask that is edited is read, also where a run stops between the index, which hashes it, and the masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.workflow.project import Project

from likeness.photos.names import shard_of
from likeness.tables import MASKS, read_rows

pytestmark = pytest.mark.slow

CONFIG = """\
shards: 2
gpus_per_job: 0
defaults:
  base_model: miniature
  photo: {min_side_px: 96}
  faces: {backend: opencv}
  masks: {backend: folder, model: null, kinds: [person]}
  captions: {backend: facts}
"""
SUBJECT = """\
recipe: character
trigger: r0bin
photos: {path: data/robin, masks: data/masks}
phases: {main: {order_by: sharpness desc}}
"""
FIRST_EDGES_PX = {"photo-0": 8, "photo-1": 40, "photo-2": 72}
EDITED = "photo-1"
SHARD = shard_of(EDITED, 2)
MASKS_TABLE = "results/robin/masks.parquet"
INDEX = f"index_photos/robin/{SHARD}"
FOLLOWS = {f"detect_faces/robin/{SHARD}", f"make_masks/robin/{SHARD}", "merge_faces/robin", "merge_masks/robin"}


def draw_mask(project: Project, name: str, edge_px: int) -> None:
    """A mask that is white right of an edge."""
    mask_HW = np.zeros((128, 128), np.uint8)
    mask_HW[:, edge_px:] = 255
    Image.fromarray(mask_HW).save(project.folder / "data" / "masks" / f"{name}.png")


def masks_of(project: Project) -> dict[str, str]:
    return {row["id"]: row["mask_sha256"] for row in read_rows(project.folder / MASKS_TABLE, MASKS)}


def test_an_edited_mask_is_read_also_where_the_run_stopped_after_the_index(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.configure(CONFIG)
    project.configure(SUBJECT, "robin")
    for folder in ("robin", "masks"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    noise = np.random.default_rng(0)
    for name, edge_px in FIRST_EDGES_PX.items():
        pixels_HWC = noise.integers(0, 256, (128, 128, 3), dtype=np.uint8)
        Image.fromarray(pixels_HWC).save(tmp_path / "data" / "robin" / f"{name}.png")
        draw_mask(project, name, edge_px)
    project.succeed(MASKS_TABLE)
    first = masks_of(project)

    draw_mask(project, EDITED, 64)
    assert project.succeed(f"results/robin/shards/photos/{SHARD}.parquet").jobs == {INDEX}
    run = project.succeed(MASKS_TABLE)
    assert (run.jobs, run.computed) == (FOLLOWS, {"masks": 1})
    second = masks_of(project)
    assert {name for name, sha256 in second.items() if sha256 != first[name]} == {EDITED}

    draw_mask(project, EDITED, FIRST_EDGES_PX[EDITED])
    run = project.succeed(MASKS_TABLE)
    assert (run.jobs, run.computed) == ({INDEX, *FOLLOWS}, {})
    assert masks_of(project) == first
    assert project.succeed(MASKS_TABLE).jobs == set()
