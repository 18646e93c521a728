"""GrabCut against masks that are known: a portrait outlined by hand, and drawn people whose masks are exact."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from skimage import data
from skimage.draw import polygon2mask

from likeness.config.faces import FaceSettings
from likeness.config.masks import MaskSettings
from likeness.faces.detector import Face
from likeness.faces.haar import HaarDetector
from likeness.masks.grabcut import GrabCutMasker
from likeness.miniature.world import Rendered, render, sample_identities, sample_scenes

KINDS = ("face", "head", "person")
BY_HAND = json.loads(Path(__file__).with_name("astronaut.json").read_text())["polygons"]


def masker() -> GrabCutMasker:
    return GrabCutMasker(MaskSettings(backend="grabcut", model=None), Path(), True, 1)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def drawn(framing: str, count: int, seed: int, side_px: int = 256) -> Rendered:
    rng = np.random.default_rng(seed)
    return render(sample_identities(count, rng), sample_scenes(count, rng, framing), side_px, side_px)


def image_of(rendered: Rendered, k: int) -> np.ndarray:
    return (rendered.images_NHWC[k] * 255).round().astype(np.uint8)


def face_of(rendered: Rendered, k: int, shake: float = 0.0) -> Face:
    x0, y0, x1, y1 = (float(value) for value in rendered.boxes_N4[k])
    move = np.random.default_rng(k).uniform(-shake, shake, 4) * (y1 - y0)
    return Face((x0 + move[0], y0 + move[1], x1 + move[2], y1 + move[3]), rendered.landmarks_N52[k], 1.0)


@pytest.fixture(scope="module")
def astronaut_masks(tmp_path_factory) -> dict[str, np.ndarray]:
    portrait = data.astronaut()
    detector = HaarDetector(FaceSettings(backend="opencv"), tmp_path_factory.mktemp("store"), True, 1)
    (face,) = detector.detect(portrait)
    made = masker()
    return {kind: made.mask(portrait, face, kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_portrait_outlined_by_hand(astronaut_masks, kind):
    truth = polygon2mask((512, 512), np.array(BY_HAND[kind])[:, ::-1])
    assert overlap(astronaut_masks[kind], truth) >= 0.8


def test_kinds_lie_in_each_other(astronaut_masks):
    face, head, person = (astronaut_masks[kind] for kind in KINDS)
    assert (face & ~head).sum() < 0.02 * face.sum()
    assert not (head & ~person).any()


def test_drawn_people():
    scores: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for seed, framing in enumerate(("close", "half", "full")):
        rendered = drawn(framing, 5, seed)
        for k in range(5):
            made, image, face = masker(), image_of(rendered, k), face_of(rendered, k)
            for kind in KINDS:
                scores[kind].append(overlap(made.mask(image, face, kind), getattr(rendered, f"{kind}_NHW")[k]))
    means = {kind: float(np.mean(values)) for kind, values in scores.items()}
    assert all(mean >= 0.9 for mean in means.values()), means


def test_an_inexact_box_costs_little():
    rendered = drawn("half", 4, 7)
    for kind in KINDS:
        truth = getattr(rendered, f"{kind}_NHW")
        values = [
            overlap(masker().mask(image_of(rendered, k), face_of(rendered, k, 0.05), kind), truth[k]) for k in range(4)
        ]
        assert np.mean(values) >= 0.8, (kind, values)


def test_faces_at_the_border_and_tiny_ones_do_not_fail():
    image = image_of(drawn("close", 1, 3), 0)
    for box in (
        (0.0, 0.0, 40.0, 50.0),
        (230.0, 200.0, 256.0, 256.0),
        (100.0, 100.0, 104.0, 105.0),
        (0.0, 0.0, 256.0, 256.0),
    ):
        for kind in KINDS:
            assert masker().mask(image, Face(box, None, 1.0), kind).shape == image.shape[:2]


PROGRAM = """
import hashlib, sys
import numpy as np
from pathlib import Path
from tests.masks.test_grabcut import KINDS, drawn, face_of, image_of, masker
rendered, digest = drawn("half", 1, 4), hashlib.sha256()
for kind in KINDS:
    digest.update(masker().mask(image_of(rendered, 0), face_of(rendered, 0), kind).tobytes())
print(digest.hexdigest())
"""


def test_same_bytes_in_another_process_and_after_other_work():
    import cv2

    rendered, digest = drawn("half", 1, 4), hashlib.sha256()
    cv2.setRNGSeed(12345)
    masker().mask(image_of(rendered, 0)[::-1].copy(), face_of(rendered, 0), "person")
    for kind in KINDS:
        digest.update(masker().mask(image_of(rendered, 0), face_of(rendered, 0), kind).tobytes())
    root = Path(__file__).parents[2]
    paths = {"PYTHONPATH": f"{root / 'scripts'}:{root}"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=paths, cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == digest.hexdigest(), done.stderr
