"""Photos of the class are indexed as photos are, through the program itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from likeness.config.regularisation import RegularisationStage
from likeness.errors import UserError
from likeness.photos.images import read_images
from likeness.photos.regularisation import index_regularisation
from likeness.store import Store

PROGRAM = Path(__file__).resolve().parents[2] / "scripts" / "index_regularisation.py"


def test_every_usable_photo_becomes_a_row(tmp_path):
    folder = tmp_path / "people"
    folder.mkdir()
    for seed in range(2):
        noise = np.random.default_rng(seed).integers(0, 256, (300, 280, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{seed}.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    settings = {"settings": {"folders": [{"path": str(folder), "repeats": 2}], "photo": {}}, "code": ""}
    output, store = tmp_path / "regularisation" / "photos.parquet", tmp_path / "store"
    command = [sys.executable, PROGRAM, "--settings", json.dumps(settings), "--store", store, "--output", output]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "2 of 3 photos of the class can be used" in done.stdout
    found = read_images(output)
    assert [(image.id, image.width_px, image.height_px, image.repeats) for image in found] == [
        ("0", 280, 300, 2),
        ("1", 280, 300, 2),
    ]


@pytest.mark.parametrize(("content", "match"), [(None, "there is no"), (b"no picture", "none of 1 photos can be used")])
def test_a_set_without_any_photo_is_refused(tmp_path, content, match):
    if content:
        (tmp_path / "people").mkdir()
        (tmp_path / "people" / "one.jpg").write_bytes(content)
    stage = RegularisationStage.model_validate({"folders": [str(tmp_path / "people")], "photo": {}})
    with pytest.raises(UserError, match=match):
        index_regularisation(stage, Store(tmp_path / "store"))
