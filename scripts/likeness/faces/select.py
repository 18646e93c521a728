"""Order candidate faces and estimate how a head is turned from five landmarks.

The pose estimate is a heuristic of projected distances, not a camera model: with the nose tip standing out of the eyes'
plane by about 0.6 eye distances, a turn by yaw moves the nose sideways by 0.6 tan(yaw) projected eye distances.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from likeness.faces.detector import Face, Pose

DOUBLE_ABOVE = 0.6  # of the smaller box; neighbours in a group photo share far less
NOSE_DEPTH = 0.6  # nose tip before the eyes' plane, in eye distances
NOSE_HEIGHT = 0.495  # nose below the eyes over mouth below the eyes, frontal; from the ArcFace template's five points
EYES_TO_MOUTH = 1.155  # in eye distances, from the same template


def ordered(faces: Sequence[Face], height_px: int, width_px: int, most: int) -> list[Face]:
    """Order faces by area minus twice the squared distance to the image's centre (insightface's measure); keep `most`."""

    def rank(face: Face) -> tuple[float, ...]:
        x0, y0, x1, y1 = face.box
        area = (x1 - x0) * (y1 - y0)
        distance2 = ((x0 + x1 - width_px) / 2) ** 2 + ((y0 + y1 - height_px) / 2) ** 2
        return (2 * distance2 - area, *face.box)

    return sorted(faces, key=rank)[:most]


def without_doubles(faces: Sequence[Face]) -> list[Face]:
    """Drop a face whose box lies mostly within, or mostly covers, that of a face with a higher score.

    A detector's own suppression goes by intersection over union, which keeps a small box inside of a large one.
    """
    kept: list[Face] = []
    for face in sorted(faces, key=lambda face: (-face.score, *face.box)):
        if all(_shared_with_smaller(face.box, other.box) <= DOUBLE_ABOVE for other in kept):
            kept.append(face)
    return kept


def _shared_with_smaller(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Intersection of two boxes over the smaller one's area, 0..1."""
    wide, tall = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return max(wide, 0.0) * max(tall, 0.0) / smaller if smaller > 0 else 0.0


def clipped(face: Face, height_px: int, width_px: int) -> Face | None:
    """Cut a face's box at the image's border; None where nothing or nearly nothing of it lies inside."""
    x0, y0, x1, y1 = face.box
    box = (max(0.0, x0), max(0.0, y0), min(float(width_px), x1), min(float(height_px), y1))
    return replace(face, box=box) if box[2] - box[0] >= 2 and box[3] - box[1] >= 2 else None


def pose_from_landmarks(landmarks_52: NDArray[np.float32]) -> Pose:
    """Estimate yaw, pitch and roll (degrees, signs as in Pose) from eyes, nose and mouth corners; nulls where eyes coincide."""
    left_eye, right_eye, nose, left_mouth, right_mouth = landmarks_52.astype(np.float64)
    across = right_eye - left_eye
    eye_distance = float(np.hypot(*across))
    if eye_distance < 1e-6:
        return Pose()
    roll = math.degrees(math.atan2(across[1], across[0]))
    right, down = across / eye_distance, np.array([-across[1], across[0]]) / eye_distance
    eyes, mouth = (left_eye + right_eye) / 2, (left_mouth + right_mouth) / 2
    yaw = math.degrees(math.atan(float((nose - eyes) @ right) / eye_distance / NOSE_DEPTH))
    mouth_below = float((mouth - eyes) @ down)
    if mouth_below <= 0:
        return Pose(yaw, None, roll)
    nose_share = float((nose - eyes) @ down) / mouth_below
    pitch = math.degrees(math.atan((NOSE_HEIGHT - nose_share) * EYES_TO_MOUTH / NOSE_DEPTH))
    return Pose(yaw, pitch, roll)


def pose_of(face: Face) -> Pose:
    """The detector's own pose, else the estimate from its landmarks, else nulls."""
    if face.pose is not None:
        return face.pose
    return Pose() if face.landmarks_52 is None else pose_from_landmarks(face.landmarks_52)
