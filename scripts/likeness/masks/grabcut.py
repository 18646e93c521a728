"""Mask maker without weights: OpenCV's GrabCut, seeded from the face box.

Three cuts build on each other. Person: the head's window and a torso below it are probably inside, what is far from
both is not. Head: within the person, hair and face against neck and clothes. Face: the skin oval against the hair over
the forehead. GrabCut starts from random centres, so OpenCV's generator is seeded before each cut: the same picture gives
the same bytes in every process.

Lengths below are in face heights (the box reaches from the hairline to the chin) unless they end in _px.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes
from scipy.spatial import KDTree

from likeness.config.masks import MaskKind, MaskSettings
from likeness.faces.detector import Face

Mask = NDArray[np.bool_]
BACK, FRONT, MAYBE_BACK, MAYBE_FRONT = cv2.GC_BGD, cv2.GC_FGD, cv2.GC_PR_BGD, cv2.GC_PR_FGD

SEED = 0
ROUNDS = 3
EDGE_SHARE = 0.02  # of the shorter side, at the picture's edge
COLOUR_SAMPLES = 2000
FACE_HEIGHT_PX = 80  # the head's window is scaled so that the face has this height


@dataclass(frozen=True)
class Frame:
    """Coordinates of a window in face heights and half face widths: x from the face's middle, y from the chin (down)."""

    x: NDArray[np.float32]
    y: NDArray[np.float32]
    u: NDArray[np.float32]
    v: NDArray[np.float32]


def cut_by_colour(image_HWC: NDArray[np.uint8], labels_HW: NDArray[np.uint8], rounds: int = ROUNDS) -> Mask:
    """Run GrabCut from labels (the four GC_ values); returns what is inside. Without both kinds of seeds, the seeds stand."""
    inside = (labels_HW == FRONT) | (labels_HW == MAYBE_FRONT)
    if inside.all() or not inside.any():
        return inside
    labels = labels_HW.copy()
    cv2.setRNGSeed(SEED)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(
        np.ascontiguousarray(image_HWC[..., ::-1]), labels, (0, 0, 1, 1), *models, rounds, cv2.GC_INIT_WITH_MASK
    )
    return (labels == FRONT) | (labels == MAYBE_FRONT)


def connected_to(mask_HW: Mask, seed_HW: Mask) -> Mask:
    """Keep the pieces of a mask that touch the seed."""
    _, pieces = cv2.connectedComponents(mask_HW.astype(np.uint8), connectivity=4)
    touched = np.unique(pieces[seed_HW & mask_HW])
    return np.isin(pieces, touched[touched > 0])


def frame_of(box: tuple[float, float, float, float], height_px: int, width_px: int) -> Frame:
    """Measure a picture's pixels from the face: x, y in face heights from (middle, chin); u, v in half boxes from the box's middle."""
    x0, y0, x1, y1 = box
    tall = max(y1 - y0, 1.0)
    column = np.arange(width_px, dtype=np.float32)[None, :] + 0.5 + np.zeros((height_px, 1), np.float32)
    row = np.arange(height_px, dtype=np.float32)[:, None] + 0.5 + np.zeros((1, width_px), np.float32)
    return Frame(
        x=(column - (x0 + x1) / 2) / tall,
        y=(row - y1) / tall,
        u=(column - (x0 + x1) / 2) / max((x1 - x0) / 2, 1.0),
        v=(row - (y0 + y1) / 2) / (tall / 2),
    )


def oval(frame: Frame, size: float = 1.0) -> Mask:
    """The ellipse inscribed in the face box, scaled by `size`."""
    return frame.u**2 + frame.v**2 < size**2


def person_labels(frame: Frame) -> NDArray[np.uint8]:
    """Seeds of a person from the proportions of an upright body."""
    x, y, across = frame.x, frame.y, np.abs(frame.x)
    labels = np.full(x.shape, MAYBE_BACK, np.uint8)
    body = (y > 0) & (y < 6) & (across < np.minimum(1.1, 0.35 + y))
    labels[_around_head(frame, 0.62, 0.78) | body] = MAYBE_FRONT
    labels[(across > 2.6) | (y > 9) | ((y < -0.25) & ~_around_head(frame, 1.05, 1.25))] = BACK
    # In a tight portrait the picture's upper edges are all of the background that is certain.
    edge = np.zeros(x.shape, bool)
    rim = max(1, round(EDGE_SHARE * min(x.shape)))
    edge[:rim] = edge[:, :rim] = edge[:, -rim:] = True
    labels[edge & (y < -0.2) & ~_around_head(frame, 0.70, 0.88)] = BACK
    neck = (across < 0.14) & (np.abs(y - 0.1) < 0.2)
    labels[oval(frame, 0.8) | neck | ((across < 0.38) & (y > 0.55) & (y < 1.8))] = FRONT
    return labels


def _around_head(frame: Frame, half_width: float, half_height: float) -> Mask:
    return (frame.x / half_width) ** 2 + ((frame.y + 0.60) / half_height) ** 2 < 1


def person_mask(image_HWC: NDArray[np.uint8], frame: Frame) -> Mask:
    """Cut the whole person out of a picture."""
    labels = person_labels(frame)
    return filled(connected_to(cut_by_colour(image_HWC, labels), labels == FRONT))


def head_mask(image_HWC: NDArray[np.uint8], frame: Frame, person_HW: Mask) -> Mask:
    """Part a person into head (face, ears, hair) and the rest (neck, clothes)."""
    across, y, face = np.abs(frame.x), frame.y, oval(frame)
    above = person_HW & (y < -0.35) & (across < 1.2)
    below = person_HW & (y >= -0.35) & ~face
    rest = (below & (((y > 0.35) & (across > 0.75)) | (y > 1.3))) | ((across < 0.16) & (y > 0)) | face | ~person_HW
    # The ears, at eye height beside the oval, are skin.
    hair_seeds = above & ~face & (y < -0.62)
    labels = np.where(rest, BACK, MAYBE_BACK).astype(np.uint8)
    labels[below & ~rest & _nearer_in_colour(image_HWC, hair_seeds, rest)] = MAYBE_FRONT
    labels[above & ~face] = FRONT
    hair = cut_by_colour(image_HWC, labels)
    return filled(connected_to((hair & person_HW) | above | face, face))


def _nearer_in_colour(image_HWC: NDArray[np.uint8], these_HW: Mask, those_HW: Mask) -> Mask:
    """Say of each pixel whether its colour is nearer to some pixels' than to others' (L*a*b*, lightness counts half)."""
    if not these_HW.any() or not those_HW.any():
        return np.zeros(these_HW.shape, bool)
    colours = cv2.cvtColor(image_HWC, cv2.COLOR_RGB2LAB).astype(np.float32) * np.array([0.5, 1, 1], np.float32)
    distances = []
    for seeds in (these_HW, those_HW):
        sample = colours[seeds][:: max(1, int(seeds.sum()) // COLOUR_SAMPLES)]
        near, _ = KDTree(sample).query(colours.reshape(-1, 3), k=min(3, len(sample)))
        distances.append(np.reshape(near, (colours.shape[0] * colours.shape[1], -1)).mean(1).reshape(seeds.shape))
    return distances[0] < distances[1]


def face_mask(image_HWC: NDArray[np.uint8], frame: Frame, person_HW: Mask) -> Mask:
    """Part the skin oval from the hair that falls over it."""
    u, v = frame.u, frame.v
    face = oval(frame)
    labels = np.full(u.shape, BACK, np.uint8)
    labels[face] = MAYBE_FRONT
    labels[face & (v > -0.3)] = FRONT
    # Ears are skin: they must not teach the cut what hair looks like.
    ring = oval(frame, 1.5) & ~face & person_HW & (v < -0.25)
    ears = oval(frame, 1.5) & ~face & (v > -0.25) & (v < 0.3)
    labels[ears] = FRONT
    labels[ring] = BACK
    skin = cut_by_colour(image_HWC, labels)
    return filled(connected_to(skin & face, face & (v > -0.3)))


def filled(mask_HW: Mask) -> Mask:
    """Close all holes that do not reach the picture's edge."""
    return np.asarray(binary_fill_holes(mask_HW), bool)


class Window:
    """A part of the picture around the head, scaled to a standard face height."""

    def __init__(self, box: tuple[float, float, float, float], height_px: int, width_px: int) -> None:
        x0, y0, x1, y1 = box
        tall, middle = max(y1 - y0, 1.0), (x0 + x1) / 2
        self.left, self.right = max(0, int(middle - 1.7 * tall)), min(width_px, int(middle + 1.7 * tall) + 1)
        self.top, self.bottom = max(0, int(y1 - 2.3 * tall)), min(height_px, int(y1 + 1.7 * tall) + 1)
        self.scale = FACE_HEIGHT_PX / tall
        self.height = max(8, round((self.bottom - self.top) * self.scale))
        self.width = max(8, round((self.right - self.left) * self.scale))
        sx, sy = self.width / (self.right - self.left), self.height / (self.bottom - self.top)
        self.box = ((x0 - self.left) * sx, (y0 - self.top) * sy, (x1 - self.left) * sx, (y1 - self.top) * sy)

    def view(self, image_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
        part = image_HWC[self.top : self.bottom, self.left : self.right]
        flag = cv2.INTER_AREA if self.scale < 1 else cv2.INTER_CUBIC
        return np.asarray(cv2.resize(part, (self.width, self.height), interpolation=flag), np.uint8)

    def back(self, mask_HW: Mask, height_px: int, width_px: int) -> Mask:
        """Put a window's mask back into the picture."""
        size = self.right - self.left, self.bottom - self.top
        flag = cv2.INTER_AREA if self.scale > 1 else cv2.INTER_LINEAR
        part = cv2.resize(mask_HW.astype(np.float32), size, interpolation=flag) > 0.5
        whole = np.zeros((height_px, width_px), bool)
        whole[self.top : self.bottom, self.left : self.right] = part
        return whole


class GrabCutMasker:
    """Face, head and person masks by colour and proportion alone."""

    def __init__(self, settings: MaskSettings, store_root: Path, offline: bool, threads: int) -> None:
        cv2.setNumThreads(threads)
        self._last: tuple[NDArray[np.uint8], Face, dict[str, Mask]] | None = None

    @classmethod
    def fingerprint(cls, settings: MaskSettings, store_root: Path, offline: bool) -> str:
        """No weights."""
        return "grabcut"

    def mask(self, image_HWC: NDArray[np.uint8], face: Face, kind: MaskKind) -> Mask:
        """Cut one kind; the three kinds of one face are made together and kept until the next face."""
        if self._last is None or self._last[0] is not image_HWC or self._last[1] is not face:
            self._last = (image_HWC, face, self._all_kinds(image_HWC, face))
        return self._last[2][kind]

    def _all_kinds(self, image_HWC: NDArray[np.uint8], face: Face) -> dict[str, Mask]:
        size = image_HWC.shape[:2]
        window = Window(face.box, *size)
        near_HWC = window.view(image_HWC)
        near = frame_of(window.box, window.height, window.width)
        near_person = person_mask(near_HWC, near)
        head = window.back(head_mask(near_HWC, near, near_person), *size)
        skin = window.back(face_mask(near_HWC, near, near_person), *size)
        person = person_mask(image_HWC, frame_of(face.box, *size))
        return {"face": skin, "head": head, "person": person | head}
