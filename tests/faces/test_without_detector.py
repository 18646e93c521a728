"""A style whose pictures show no people: no face is looked for, no weights are asked for, and nothing is made up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from likeness.config.craft import check_craft
from likeness.config.masks import MaskSettings
from likeness.config.quality import QualitySettings
from likeness.config.subject import Subject
from likeness.faces.stage import NOT_LOOKED_FOR, row_unseen
from likeness.masks.stage import MaskStageRunner
from likeness.photos.images import ImageRef
from likeness.quality.measure import measure_shard
from likeness.store import Store
from likeness.tables import FACES, QUALITY, table_of

IMAGE = ImageRef("a", "photo", "a.png", "0" * 64, 64, 48, 1)


def test_no_mask_is_made_and_no_weights_are_looked_for(tmp_path: Path) -> None:
    runner = MaskStageRunner(MaskSettings(), Store(tmp_path), offline=True, threads=1)
    face = table_of(FACES, [row_unseen(IMAGE)]).to_pylist()[0]
    rows = runner.rows(IMAGE, face, by_hand=None)
    assert [row["status"] for row in rows] == [NOT_LOOKED_FOR] * 3 and runner.models_loaded == 0


def test_a_mask_by_hand_still_counts(tmp_path: Path) -> None:
    drawn = np.zeros((48, 64), np.uint8)
    drawn[:24] = 255
    Image.fromarray(drawn).save(tmp_path / "mask.png")
    runner = MaskStageRunner(MaskSettings(kinds=("person",)), Store(tmp_path / "store"), offline=True, threads=1)
    face = table_of(FACES, [row_unseen(IMAGE)]).to_pylist()[0]
    (row,) = runner.rows(IMAGE, face, by_hand=str(tmp_path / "mask.png"))
    assert row["status"] == "ok" and row["area_fraction"] == 0.5


def test_nothing_is_measured_and_the_photo_is_not_read(tmp_path: Path) -> None:
    face = table_of(FACES, [row_unseen(IMAGE)]).to_pylist()[0]
    (row,) = table_of(QUALITY, measure_shard([IMAGE], [face], [], QualitySettings(), Store(tmp_path))).to_pylist()
    measured = {name: value for name, value in row.items() if value is not None}
    assert measured == {"id": "a", "status": NOT_LOOKED_FOR, "reason": face["reason"]}


@pytest.mark.parametrize(
    ("recipe", "more", "keys"),
    [
        ("style", {}, []),
        ("style", {"reference": ["me.jpg"]}, ["reference"]),
        ("character", {}, ["faces.backend"]),
    ],
)
def test_recipes_that_need_a_face_refuse(recipe: str, more: dict, keys: list[str]) -> None:
    values = {"recipe": recipe, "trigger": "inkw4sh", "photos": "data", "faces": {"backend": "none"}}
    errors: list[str] = []
    check_craft("ink", Subject.model_validate(values | more), errors, place=lambda key: "file")
    assert [error.split(": ")[2] for error in errors] == keys
