"""What the model sees, and the version that stands for it: other pixels under the same number would mix old and new answers."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from likeness.captions import endpoint, pictures
from likeness.captions.interview import VERSION
from likeness.errors import UserError
from likeness.photos.images import ImageRef
from likeness.store import sha256_of_file


def test_version_stands_for_pixels_and_parameters(tmp_path: Path) -> None:
    path = tmp_path / "ramp.png"
    ramp_HWC = (np.add.outer(np.arange(40), np.arange(60))[..., None] * np.array([1, 2, 0.5])).astype(np.uint8)
    Image.fromarray(ramp_HWC).save(path)
    image = ImageRef("ramp", "photo", str(path), sha256_of_file(path), 60, 40, 1)
    small = pictures.load_picture(image, 30)
    facts = [small.size, pictures.JPEG_QUALITY, endpoint.SEED, hashlib.sha256(small.tobytes()).hexdigest()[:16]]
    assert (VERSION, facts) == (2, [(30, 20), 90, 0, "aba674ce96a5b3a3"]), "raise VERSION where these differ"
    assert pictures.load_picture(image, 60).size == (60, 40)
    assert pictures.load_picture(image, 500).size == (60, 40)


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "one.png"
    Image.new("RGB", (8, 8)).save(path)
    image = ImageRef("one", "photo", str(path), "0" * 64, 8, 8, 1)
    with pytest.raises(UserError, match="changed after it was indexed"):
        pictures.load_picture(image, 100)
