"""Pictures of the class: drawn once by the bare base model, taken from the store afterwards, and put back where gone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.tiny import save_tiny

from likeness.config.regularisation import ClassImagesStage, RegularisationSettings
from likeness.errors import DamagedFileError
from likeness.evaluation.class_images import draw_class_images
from likeness.photos.images import read_images
from likeness.store import Store, sha256_of_file
from likeness.tables import PHOTOS, read_rows, write_table
from likeness.training.encode import class_images


def stage_of(base, **changes) -> ClassImagesStage:
    values = {"base_model": {"source": str(base)}, "caption": "a photo of a person", "drawn": 3, "size_px": 32}
    values |= {"sampling_steps": 2, "guidance_scale": 2.0, "seed": 5, "batch_size": 2, "precision": "float32"}
    return ClassImagesStage.model_validate(values | changes)


@pytest.fixture
def drawn(tmp_path) -> tuple[Store, Path]:
    """A store and the table of three pictures that were drawn."""
    save_tiny(tmp_path / "base", seed=3)
    store, table = Store(tmp_path / "store"), tmp_path / "regularisation" / "drawn.parquet"
    draw_class_images(stage_of(tmp_path / "base"), store, table)
    return store, table


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


@pytest.mark.parametrize("damage", [lambda data: None, lambda data: data[:40], lambda data: data + b"more"])
def test_pictures_that_are_gone_or_changed_are_taken_back_from_the_store(drawn, damage):
    store, table = drawn
    picture = table.parent / "drawn" / "0001.png"
    left = damage(picture.read_bytes())
    picture.unlink() if left is None else picture.write_bytes(left)
    found = class_images(table, store)
    assert len(found) == 3
    assert all(sha256_of_file(Path(image.path)) == image.sha256 for image in found)
    store.blob_path(found[1].sha256).write_bytes(b"damaged")
    assert class_images(table, store) == found
    picture.write_bytes(b"damaged")
    with pytest.raises(DamagedFileError, match=found[1].sha256):
        class_images(table, store)


def test_the_users_own_pictures_are_never_written(drawn, tmp_path):
    store, table = drawn
    row, *_ = read_rows(table, PHOTOS)
    mine = tmp_path / "mine" / "photo.png"
    write_table(tmp_path / "regularisation" / "photos.parquet", PHOTOS, [row | {"path": mine.as_posix()}])
    class_images(tmp_path / "regularisation" / "photos.parquet", store)
    assert not mine.exists()


def test_the_caption_names_the_class():
    assert RegularisationSettings().caption_of("woman") == "a photo of a woman"
