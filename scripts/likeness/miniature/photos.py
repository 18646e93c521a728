"""The demo's drawn photos: one person's album, and pairs that teach an edit, with planted defects.

Drawn large, since detectors want real pixels; the miniature's model sees them scaled down to its native size. The
bytes of every file are a function of the seed.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from likeness.miniature.scenes import EYES, HAIR, IDENTITY_FIELDS, SKIN, Scene, sample_identities, sample_scenes
from likeness.miniature.world import render

ROBIN = {
    **{"skin_red": 0.93, "skin_green": 0.73, "skin_blue": 0.60},
    **{"hair_red": 0.66, "hair_green": 0.25, "hair_blue": 0.10},
    **{"eye_red": 0.16, "eye_green": 0.50, "eye_blue": 0.26},
    **{"face_width": 0.77, "face_height": 1.0, "eye_spacing": 0.49, "eye_size": 0.11, "mouth_width": 0.42},
    **{"hair_length": 0.8, "glasses": 1.0, "beard": 0.0},
}
ROBIN_SIZES = ((320, 320), (256, 320), (384, 320), (288, 384), (256, 256))
"""Width and height, px, taken in turn."""
ROBIN_FORMATS = ("jpg", "png", "webp")
ROBIN_CLOSE, ROBIN_HALF = 18, 6
SMILE_INSTRUCTION = "make the person smile in front of a white background"
SMILE_PAIRS = 48
DEFECTS = ("identity", "shift", "hair", "skin", "unchanged")
DEFECT_COPIES = 2
PAIR_PX = 256
_SAVE_OPTIONS: dict[str, dict[str, object]] = {
    "jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    "png": {"format": "PNG", "compress_level": 6},
    "webp": {"format": "WEBP", "lossless": True, "method": 2},
}


def save_photo(image_HWC: NDArray, path: Path) -> None:
    """Write a picture (uint8, or float 0..1) as jpg, png or webp by the path's ending; bytes that are there already are kept."""
    if image_HWC.dtype != np.uint8:
        image_HWC = np.round(image_HWC * 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, **_SAVE_OPTIONS[path.suffix.lstrip(".")])  # pyright: ignore[reportArgumentType]
    write_bytes(path, buffer.getvalue())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file unless it holds these bytes, so that a second run leaves its time stamp alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not (path.is_file() and path.read_bytes() == content):
        path.write_bytes(content)


def robin() -> NDArray[np.float32]:
    """Return the identity (1, D) of the demo's drawn person: long auburn hair, green eyes, glasses."""
    return np.array([[ROBIN[name] for name in IDENTITY_FIELDS]], np.float32)


def draw_robin(folder: Path, seed: int) -> list[Path]:
    """Draw 24 photos of robin, 18 close and 6 half body, in every light, pose and background; returns their paths."""
    rng = np.random.default_rng([seed, 2])
    close, half = sample_scenes(ROBIN_CLOSE, rng), sample_scenes(ROBIN_HALF, rng, "half")
    shots = [close.take(i) for i in range(ROBIN_CLOSE)] + [half.take(i) for i in range(ROBIN_HALF)]
    paths = []
    for number, scene in enumerate(shots, start=1):
        width_px, height_px = ROBIN_SIZES[number % len(ROBIN_SIZES)]
        path = folder / f"robin-{number:02d}.{ROBIN_FORMATS[number % len(ROBIN_FORMATS)]}"
        save_photo(render(robin(), scene, height_px, width_px).images_NHWC[0], path)
        paths.append(path)
    return paths


def draw_robin_smiles(folder: Path, truth_file: Path, seed: int) -> list[str]:
    """Draw edit pairs as `NN_start.png`, `NN_end.png` and `NN.txt`: the same face smiling before white; returns their names.

    48 pairs are right; then come two of each planted defect, whose end shows another person, lies some px aside, has
    other hair, another skin, or is the start again. `truth_file` (columns pair, defect) says which; it must lie outside
    of `folder`.
    """
    assert folder not in truth_file.parents, "the truth must not lie among the photos"
    kinds = [""] * SMILE_PAIRS + [kind for kind in DEFECTS for _ in range(DEFECT_COPIES)]
    rng = np.random.default_rng([seed, 3])
    identities, scenes = sample_identities(len(kinds), rng), smile_scenes(len(kinds), rng)
    rows = []
    for i, kind in enumerate(kinds):
        name = f"{i + 1:02d}"
        start, end = draw_pair(identities[i : i + 1], scenes.take(i), kind, rng)
        save_photo(start, folder / f"{name}_start.png")
        save_photo(end, folder / f"{name}_end.png")
        write_bytes(folder / f"{name}.txt", f"{SMILE_INSTRUCTION}\n".encode())
        rows.append((name, kind))
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([("pair", "defect"), *rows])
    write_bytes(truth_file, table.getvalue().encode())
    return [name for name, _ in rows]


def smile_scenes(n: int, rng: np.random.Generator) -> Scene:
    """Sample the scenes that edits start from: close, neutral, any pose and background, bright and rather even light."""
    scenes = sample_scenes(n, rng)
    return scenes.change(
        smile=rng.uniform(-0.2, 0.1, n),
        light_strength=0.3 * scenes.light_strength,
        brightness=rng.uniform(0.95, 1.05, n),
    )


def smiling(scene: Scene) -> Scene:
    """Return the same scene as the edit wants it: smiling, before white."""
    return scene.with_background("white").change(smile=0.8)


def draw_pair(
    identity: NDArray, scene: Scene, defect: str, rng: np.random.Generator, side_px: int = PAIR_PX
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Draw one pair (each (H, W, 3), 0..1); `defect` is one of DEFECTS or "" for a right pair."""
    after = smiling(scene)
    person = flawed_identity(identity, defect, rng)
    if defect == "shift":
        shift = rng.uniform(0.025, 0.045, 2) * rng.choice([-1, 1], 2)
        after = after.change(centre_x=after.centre_x + shift[0], centre_y=after.centre_y + shift[1])
    if defect == "unchanged":
        after = scene
    start = render(identity, scene, side_px, side_px).images_NHWC[0]
    return start, render(person, after, side_px, side_px).images_NHWC[0]


def flawed_identity(identity: NDArray, defect: str, rng: np.random.Generator) -> NDArray:
    """Return the identity (1, D) that a flawed end shows: for "identity" other eyes and another face under the same hair and skin."""
    person = identity.copy()
    if defect == "identity":
        _replace_features(person, sample_identities(1, rng))
    elif defect == "hair":
        # The farther of black and blond, and as long as it was short.
        dark = person[0, HAIR].mean() < 0.45
        person[0, HAIR] = (0.92, 0.78, 0.40) if dark else (0.10, 0.07, 0.06)
        length = IDENTITY_FIELDS.index("hair_length")
        person[0, length] = 1 - np.round(person[0, length])
    elif defect == "skin":
        dark = person[0, SKIN].mean() < 0.55
        person[0, SKIN] = (0.95, 0.78, 0.66) if dark else (0.42, 0.27, 0.19)
    return person


def _replace_features(person: NDArray, stranger: NDArray) -> None:
    """Give a person, in place, a stranger's eyes and the opposite of each of their own traits of shape."""
    person[0, EYES] = stranger[0, EYES]
    middles = {"face_width": 0.79, "face_height": 1.0, "eye_spacing": 0.48, "eye_size": 0.105, "mouth_width": 0.39}
    spans = {"face_width": 0.09, "face_height": 0.08, "eye_spacing": 0.06, "eye_size": 0.02, "mouth_width": 0.11}
    for name, middle in middles.items():
        i = IDENTITY_FIELDS.index(name)
        person[0, i] = middle - spans[name] if person[0, i] > middle else middle + spans[name]
    for name in ("glasses", "beard"):
        i = IDENTITY_FIELDS.index(name)
        person[0, i] = 1 - person[0, i]
