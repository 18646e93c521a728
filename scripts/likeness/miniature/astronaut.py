"""A real photo's album: the NASA portrait that scikit-image ships, retaken in other frames, lights and places.

The portrait is cut out once with GrabCut from hints drawn by hand, put before colours and gradients, then lit, warmed
and cropped. Five more files are what a real folder holds too: a blurred photo, one without a face, an exact copy, a
near copy, and another person. That person is drawn, from a fixed seed which OpenCV's cascades find a face in; the
small faces that scikit-image ships have 25 px and would fall out for their size instead.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import skimage.data
from numpy.typing import NDArray

from likeness.miniature.photos import save_photo, write_bytes
from likeness.miniature.scenes import sample_identities, sample_scenes
from likeness.miniature.world import render

FACE = (174, 60, 275, 185)
"""Left, top, right, bottom of her face in the portrait, px, read off by eye."""
BESIDE_HER_JAW = ((268, 133), (300, 126), (306, 196), (274, 180), (258, 171), (264, 152))
"""Corners (x, y), px, of the wall between jaw and collar, which GrabCut takes for skin."""
STRANGER = 15
"""Which of 60 drawn people is the other person: one in whom the cascades see a face."""
COLLAR = (
    *((112, 193), (125, 166), (148, 151), (184, 148), (256, 177), (290, 205), (304, 235)),
    *((299, 256), (265, 277), (190, 270), (145, 250)),
)
"""Corners of the suit's collar ring, whose light lining GrabCut takes for wall."""


@dataclass(frozen=True)
class Shot:
    """One retake. crop: left, top, right, bottom in the portrait, px; size: width and height written, px.

    exposure: factor on linear light; side: -1 lit from the viewer's left .. 1 from the right; warmth: -1 cool .. 1
    warm; backdrop: upper and lower colour 0..1, or None for the portrait's own.
    """

    crop: tuple[int, int, int, int]
    size: tuple[int, int]
    exposure: float = 1.0
    side: float = 0.0
    warmth: float = 0.0
    backdrop: tuple[tuple[float, float, float], tuple[float, float, float]] | None = None


_CLOSE, _TIGHT, _WIDE = (110, 0, 342, 232), (138, 12, 318, 192), (80, 0, 372, 292)
_BUST, _HALF, _WHOLE = (40, 0, 400, 360), (10, 0, 442, 432), (0, 0, 512, 512)
_TALL, _LEFTISH, _RIGHTISH = (120, 0, 330, 270), (60, 0, 310, 250), (140, 0, 390, 250)
_RED, _GREEN, _BLUE = (0.75, 0.18, 0.18), (0.20, 0.62, 0.30), (0.20, 0.35, 0.85)
_WHITE, _BLACK, _GREY = (0.95, 0.95, 0.95), (0.06, 0.06, 0.07), (0.50, 0.50, 0.50)
_YELLOW, _PURPLE, _BROWN = (0.93, 0.83, 0.25), (0.55, 0.25, 0.70), (0.42, 0.28, 0.17)
SHOTS = (
    Shot(_WHOLE, (512, 512)),
    Shot(_CLOSE, (464, 464), backdrop=(_BLUE, _BLUE)),
    Shot(_TIGHT, (432, 432), exposure=1.25, backdrop=(_WHITE, _GREY)),
    Shot(_WIDE, (438, 438), side=-0.9, backdrop=(_GREEN, _GREEN)),
    Shot(_BUST, (480, 480), side=0.9, backdrop=(_GREY, _BLACK)),
    Shot(_TALL, (420, 540), warmth=0.8, backdrop=(_RED, _BROWN)),
    Shot(_LEFTISH, (450, 450), warmth=-0.8, backdrop=(_WHITE, _WHITE)),
    Shot(_RIGHTISH, (450, 450), exposure=0.45, backdrop=(_PURPLE, _BLACK)),
    Shot(_HALF, (480, 480), exposure=1.2, backdrop=(_YELLOW, _YELLOW)),
    Shot(_CLOSE, (400, 400), side=-0.8, exposure=0.9, backdrop=(_BROWN, _BROWN)),
    Shot(_TIGHT, (400, 400), side=0.8, warmth=0.5, backdrop=(_BLACK, _BLACK)),
    Shot(_WIDE, (500, 500), exposure=0.4, warmth=0.3),
    Shot(_BUST, (420, 420), side=-0.9, warmth=-0.5, backdrop=(_BLUE, _WHITE)),
    Shot(_TALL, (378, 486), side=0.85, exposure=1.1, backdrop=(_GREEN, _YELLOW)),
    Shot(_HALF, (500, 500), exposure=0.55, side=0.4, backdrop=(_RED, _RED)),
    Shot(_LEFTISH, (500, 500), side=0.9, backdrop=(_GREY, _GREY)),
    Shot(_RIGHTISH, (420, 420), side=-0.7, warmth=0.7, backdrop=(_PURPLE, _PURPLE)),
    Shot(_WIDE, (420, 420), exposure=1.1, warmth=-0.6),
)


def draw_astronaut(folder: Path, truth_file: Path) -> list[Path]:
    """Write 18 retakes and five files that curation should find; `truth_file` (columns file, kind) says which; about 3 s.

    Kinds: "" for a retake, blurred, no_face, duplicate, near_duplicate, other_person.
    """
    assert folder not in truth_file.parents, "the truth must not lie among the photos"
    portrait, matte = skimage.data.astronaut(), cut_out(skimage.data.astronaut())
    photos: dict[str, tuple[str, Any]] = {
        f"astronaut-{i:02d}.jpg": ("", retake(portrait, matte, shot)) for i, shot in enumerate(SHOTS, start=1)
    }
    sharp = photos["astronaut-04.jpg"][1]
    photos["blurred.jpg"] = ("blurred", cv2.GaussianBlur(photos["astronaut-07.jpg"][1], (0, 0), 9))
    photos["coffee.jpg"] = ("no_face", skimage.data.coffee())
    photos["near-copy.png"] = (
        "near_duplicate",
        cv2.resize(sharp, None, fx=0.95, fy=0.95, interpolation=cv2.INTER_AREA),
    )
    photos["stranger.png"] = ("other_person", draw_stranger())
    for name, (_, image_HWC) in photos.items():
        save_photo(image_HWC, folder / name)
    write_bytes(folder / "copy.jpg", (folder / "astronaut-02.jpg").read_bytes())
    rows = sorted([(name, kind) for name, (kind, _) in photos.items()] + [("copy.jpg", "duplicate")])
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([("file", "kind"), *rows])
    write_bytes(truth_file, table.getvalue().encode())
    return [folder / name for name, _ in rows]


def cut_out(portrait_HWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return her matte (H, W), 0..1 with soft edges, from the full portrait of 512 × 512 px; the same at every call."""
    y, x = np.mgrid[: portrait_HWC.shape[0], : portrait_HWC.shape[1]]

    def oval(cx: float, cy: float, rx: float, ry: float) -> NDArray[np.bool_]:
        return ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1

    hints = np.full(portrait_HWC.shape[:2], cv2.GC_BGD, np.uint8)
    hints[170:, 20:500] = cv2.GC_PR_FGD
    hints[12:210, 140:315] = cv2.GC_PR_FGD
    hints[((y < 330) & (x > 375))] = cv2.GC_BGD
    hints[oval(228, 115, 50, 75) | oval(226, 70, 66, 42)] = cv2.GC_FGD
    hints[((y > 260) & (x > 90) & (x < 300)) | ((y > 470) & (x > 60) & (x < 480)) | oval(305, 358, 40, 24)] = cv2.GC_FGD
    cv2.fillPoly(hints, [np.array(COLLAR)], (cv2.GC_FGD,))
    cv2.fillPoly(hints, [np.array(BESIDE_HER_JAW)], (cv2.GC_BGD,))
    cv2.setRNGSeed(0)
    cv2.grabCut(portrait_HWC, hints, None, np.zeros((1, 65)), np.zeros((1, 65)), 6, cv2.GC_INIT_WITH_MASK)  # pyright: ignore[reportCallIssue, reportArgumentType]
    inside = ((hints == cv2.GC_FGD) | (hints == cv2.GC_PR_FGD)).astype(np.float32)
    return np.asarray(cv2.GaussianBlur(cv2.erode(inside, np.ones((3, 3), np.uint8)), (0, 0), 1.0), np.float32)


def retake(portrait_HWC: NDArray[np.uint8], matte_HW: NDArray[np.float32], shot: Shot) -> NDArray[np.uint8]:
    """Take the portrait again as the shot says; returns (H, W, 3) uint8 of the shot's size. Light acts on linear values."""
    linear = (portrait_HWC.astype(np.float32) / 255) ** 2.2
    person = linear * _side_light(portrait_HWC.shape[1], shot.side)
    if shot.backdrop is not None:
        upper, lower = (np.array(colour, np.float32) ** 2.2 for colour in shot.backdrop)
        share = np.linspace(0, 1, portrait_HWC.shape[0], dtype=np.float32)[:, None, None]
        behind = np.broadcast_to(upper * (1 - share) + lower * share, person.shape)
        person = person * matte_HW[..., None] + behind * (1 - matte_HW[..., None])
    warm = np.array([1 + 0.3 * shot.warmth, 1.0, 1 - 0.35 * shot.warmth], np.float32)
    lit = np.clip(person * shot.exposure * warm, 0, 1) ** (1 / 2.2)
    left, top, right, bottom = shot.crop
    cropped = np.ascontiguousarray(lit[top:bottom, left:right])
    enlarged = cv2.resize(cropped, shot.size, interpolation=cv2.INTER_CUBIC)
    return np.round(np.clip(enlarged, 0, 1) * 255).astype(np.uint8)


def _side_light(width_px: int, side: float) -> NDArray[np.float32]:
    """Return factors (1, W, 1): a lamp at one side of her face, falling off over the width of her head."""
    middle, half = (FACE[0] + FACE[2]) / 2, (FACE[2] - FACE[0]) / 2
    across = np.tanh((np.arange(width_px, dtype=np.float32) - middle) / half)
    return np.exp(1.3 * side * across - 0.35 * abs(side))[None, :, None].astype(np.float32)


def draw_stranger() -> NDArray[np.float32]:
    """Draw somebody else, facing the camera in even light, (448, 448, 3) 0..1."""
    rng = np.random.default_rng(0)
    person = sample_identities(60, rng)[STRANGER : STRANGER + 1]
    scene = sample_scenes(1, rng).change(yaw_deg=0.0, roll_deg=0.0, brightness=1.0, light_strength=0.1, scale=0.5)
    scene = scene.with_background("grey").change(centre_x=0.5, centre_y=0.45)
    return render(person, scene, 448, 448).images_NHWC[0]
