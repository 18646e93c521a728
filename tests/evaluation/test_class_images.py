"""Pictures of the class: drawn once by the bare base model, taken from the store afterwards, and put back where gone."""

from __future__ import annotations

import numpy as np
from PIL import Image
from tests.tiny import save_tiny

from likeness.config.regularisation import ClassImagesStage, RegularisationSettings
from likeness.evaluation.class_images import draw_class_images
from likeness.photos.images import read_images
from likeness.store import Store, sha256_of_file
from likeness.training.encode import class_images


def stage_of(base, **changes) -> ClassImagesStage:
    values = {"base_model": {"source": str(base)}, "caption": "a photo of a person", "drawn": 3, "size_px": 32}
    values |= {"sampling_steps": 2, "guidance_scale": 2.0, "seed": 5, "batch_size": 2, "precision": "float32"}
    return ClassImagesStage.model_validate(values | changes)


def test_pictures_are_drawn_once_and_come_back_from_the_store(tmp_path):
    save_tiny(tmp_path / "base", seed=3)
    store, table = Store(tmp_path / "store"), tmp_path / "regularisation" / "drawn.parquet"
    assert draw_class_images(stage_of(tmp_path / "base"), store, table) > 0
    images = read_images(table)
    assert len({image.sha256 for image in images}) == 3 and [image.width_px for image in images] == [32] * 3
    assert all(np.asarray(Image.open(image.path)).shape == (32, 32, 3) for image in images)
    before = table.read_bytes()
    assert draw_class_images(stage_of(tmp_path / "base"), Store(tmp_path / "store"), table) == 0
    assert table.read_bytes() == before
    fewer = tmp_path / "fewer" / "drawn.parquet"
    draw_class_images(stage_of(tmp_path / "base", drawn=2, seed=6), Store(tmp_path / "store"), fewer)
    assert [image.sha256 for image in read_images(fewer)] == [image.sha256 for image in images[1:]]
    (tmp_path / "regularisation" / "drawn" / "0001.png").unlink()
    found = class_images(table, store)
    assert [image.role for image in found] == ["class"] * 3
    assert all(sha256_of_file(tmp_path / image.path) == image.sha256 for image in found)


def test_the_caption_names_the_class():
    assert RegularisationSettings().caption_of("woman") == "a photo of a woman"
