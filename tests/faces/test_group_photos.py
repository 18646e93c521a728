"""In drawn group photos the subject's face wins, through the real insightface with the trained miniature pack."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.faces.test_stage import full
from tests.miniature.conftest import trained_pack

from likeness.config.faces import FaceMerge, FaceSettings
from likeness.faces.merge import merge_faces
from likeness.faces.stage import FaceStageRunner
from likeness.miniature.world import Rendered, render, render_group, sample_identities, sample_scenes
from likeness.photos.images import ImageRef
from likeness.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:`estimate` is deprecated:FutureWarning")]
__all__ = ["trained_pack"]
GROUPS, STRANGERS, SIDE_PX = 30, 5, 256


def write(folder: Path, name: str, rendered: Rendered) -> ImageRef:
    path = folder / f"{name}.png"
    Image.fromarray((rendered.images_NHWC[0] * 255).round().astype(np.uint8)).save(path)
    return ImageRef(name, "photo", str(path), hashlib.sha256(path.read_bytes()).hexdigest(), SIDE_PX, SIDE_PX, 1)


def group(subject: np.ndarray, rng: np.random.Generator) -> tuple[Rendered, int]:
    """Two or three people side by side; returns the picture and the subject's place among them."""
    people = int(rng.integers(2, 4))
    place = int(rng.integers(people))
    identities = sample_identities(people, rng)
    identities[place] = subject
    centres = (np.arange(people) + 0.5) / people + rng.uniform(-0.03, 0.03, people)
    scene = sample_scenes(people, rng, "half").change(
        centre_x=centres, centre_y=rng.uniform(0.3, 0.45, people), scale=rng.uniform(0.2, 0.28, people)
    )
    return render_group(identities, scene, SIDE_PX, SIDE_PX), place


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    shared = float(np.prod(np.clip(high - low, 0, None)))
    return shared / (float(np.prod(a[2:] - a[:2])) + float(np.prod(b[2:] - b[:2])) - shared)


@pytest.mark.parametrize("singles", [6, 0])
def test_the_right_face_wins(trained_pack, tmp_path, singles):
    rng = np.random.default_rng(11)
    subject = sample_identities(1, rng)
    photos, truth = [], {}
    for k in range(singles):
        photos.append(write(tmp_path, f"alone-{k}", render(subject, sample_scenes(1, rng, "close"), SIDE_PX, SIDE_PX)))
    for k in range(GROUPS):
        rendered, place = group(subject[0], rng)
        photos.append(write(tmp_path, f"group-{k:02}", rendered))
        truth[f"group-{k:02}"] = rendered.boxes_N4[place]
    for k in range(STRANGERS):
        stranger = render(sample_identities(1, rng), sample_scenes(1, rng, "close"), SIDE_PX, SIDE_PX)
        photos.append(write(tmp_path, f"stranger-{k}", stranger))
    settings = FaceSettings.model_validate(
        {"model": str(trained_pack / "pack"), "detection_size_px": 128, "min_identity": 0.45}
    )
    store = Store(tmp_path / "store")
    runner = FaceStageRunner(settings, store, True, 1)
    rows = full([row for photo in photos for row in runner.rows(photo)])
    merged, _ = merge_faces(rows, FaceMerge(faces=settings, kind="photos"), store)
    chosen = {row["id"]: row for row in merged if row["is_subject"]}
    boxes = {name: np.array([chosen[name][c] for c in ("x0", "y0", "x1", "y1")]) for name in truth if name in chosen}
    right = sum(overlap(boxes[name], box) > 0.5 for name, box in truth.items() if name in boxes)
    assert right >= GROUPS - 1, right
    strangers = [chosen[f"stranger-{k}"] for k in range(STRANGERS) if f"stranger-{k}" in chosen]
    assert len(strangers) >= 2 and all(row["status"] == "other_person" for row in strangers)
    known = [chosen[name]["status"] for name in truth if name in boxes]
    assert known.count("other_person") <= 2
