"""Detector without weights: OpenCV's Haar cascades for frontal faces and eyes, and a gradient descriptor.

The cascades ship with opencv-python 4.x. Boxes are stretched to reach from hairline to chin, as other detectors' do. A
face's score is n / (n + 5), where n is how many overlapping windows agreed, so that the usual "five neighbours" is a
score of 0.5; without two eyes in it a window needs twice the agreement for the same score. Only frontal, upright faces
are found.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from likeness.config.faces import FaceSettings
from likeness.errors import UserError
from likeness.faces.descriptor import KIND, describe
from likeness.faces.detector import Face, Pose
from likeness.store import sha256_of_bytes, sha256_of_file

FACE_XML, EYE_XML = "haarcascade_frontalface_default.xml", "haarcascade_eye.xml"
NEIGHBOURS_AT_HALF = 5
WITHOUT_EYES = 0.75
SCALE_STEP, EYE_SCALE_STEP, EYE_NEIGHBOURS = 1.1, 1.05, 5
SMALLEST_SHARE = 0.06  # smallest face side over the detection square's side
EYES_BELOW_TOP = 0.62  # eyes are looked for in this upper share of the face box
# A Haar window reaches from the brows to the lower lip; other detectors' boxes from the hairline to the chin. Shares of
# the window's height that are added above and below, measured on a portrait with known eye and chin positions.
ADDED_ABOVE, ADDED_BELOW = 0.03, 0.19
# Five-point shape relative to the eyes, in eye distances: down from the middle of the eyes, and half width of the mouth.
NOSE_DOWN, MOUTH_DOWN, MOUTH_HALF = 0.572, 1.155, 0.41


def cascade_file(name: str) -> Path:
    """Find a shipped cascade; raises UserError naming file and folder (opencv-python 5 ships none)."""
    path = Path(getattr(getattr(cv2, "data", None), "haarcascades", "cv2/data")) / name
    if not path.is_file() or not hasattr(cv2, "CascadeClassifier"):
        raise UserError(
            f"faces.backend: the opencv backend needs {path.name} in the folder {path.parent}, which opencv-python 4.14 ships and "
            f"5.x does not (found {cv2.__version__}). Install 'opencv-python>=4.14,<5'."
        )
    return path


class HaarDetector:
    """Frontal faces by Haar cascade; landmarks are estimated from the two eyes where both are found."""

    def __init__(self, settings: FaceSettings, store_root: Path, offline: bool, threads: int) -> None:
        cv2.setNumThreads(threads)
        self._settings = settings
        self._faces = cv2.CascadeClassifier(str(cascade_file(FACE_XML)))
        self._eyes = cv2.CascadeClassifier(str(cascade_file(EYE_XML)))

    @classmethod
    def fingerprint(cls, settings: FaceSettings, store_root: Path) -> str:
        """Digest of the two cascades and the descriptor's name."""
        hashes = [sha256_of_file(cascade_file(name)) for name in (FACE_XML, EYE_XML)]
        return sha256_of_bytes("".join([*hashes, KIND]).encode())

    def detect(self, image_HWC: NDArray[np.uint8]) -> list[Face]:
        """Find frontal faces in an upright RGB image, (H, W, 3) uint8."""
        height, width = image_HWC.shape[:2]
        scale = min(1.0, self._settings.detection_size_px / max(height, width))
        grey = cv2.cvtColor(image_HWC, cv2.COLOR_RGB2GRAY)
        if scale < 1:
            grey = cv2.resize(grey, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
        smallest = max(24, round(SMALLEST_SHARE * self._settings.detection_size_px))
        boxes, counts = self._faces.detectMultiScale2(
            cv2.equalizeHist(grey), scaleFactor=SCALE_STEP, minNeighbors=2, minSize=(smallest, smallest)
        )
        faces = []
        for (x, y, w, h), count in zip(boxes, counts, strict=True):
            window = int(x), int(y), int(w), int(h)
            score = float(count) / (float(count) + NEIGHBOURS_AT_HALF)
            if score < self._settings.min_score:
                continue
            eyes_22 = self._find_eyes(grey, window)
            score *= 1.0 if eyes_22 is not None else WITHOUT_EYES
            if score >= self._settings.min_score:
                faces.append(self._face(image_HWC, window, eyes_22, scale, score))
        return faces

    def _face(
        self,
        image_HWC: NDArray[np.uint8],
        window: tuple[int, int, int, int],
        eyes_22: NDArray[np.float64] | None,
        scale: float,
        score: float,
    ) -> Face:
        x, y, w, h = window
        box = (x / scale, (y - ADDED_ABOVE * h) / scale, (x + w) / scale, (y + (1 + ADDED_BELOW) * h) / scale)
        eyes_22 = None if eyes_22 is None else eyes_22 / scale
        landmarks = None if eyes_22 is None else landmarks_from_eyes(eyes_22)
        # Points made from the eyes alone know the tilt and nothing of yaw and pitch.
        roll = None if eyes_22 is None else float(np.degrees(np.arctan2(*(eyes_22[1] - eyes_22[0])[::-1])))
        embedding = describe(image_HWC, box, eyes_22)
        return Face(box, landmarks, score, Pose(None, None, roll), embedding, None if embedding is None else KIND)

    def _find_eyes(self, grey: NDArray, window: tuple[int, int, int, int]) -> NDArray[np.float64] | None:
        """Return the two eyes' middles (2, 2), image left first, or None unless there is a plausible pair."""
        x, y, w, h = window
        upper = grey[y : y + round(h * EYES_BELOW_TOP), x : x + w]
        enlarge = max(1.0, 160 / w)
        if enlarge > 1:
            upper = cv2.resize(upper, None, fx=enlarge, fy=enlarge, interpolation=cv2.INTER_CUBIC)
        smallest = round(0.12 * w * enlarge)
        found, counts = self._eyes.detectMultiScale2(
            upper, scaleFactor=EYE_SCALE_STEP, minNeighbors=EYE_NEIGHBOURS, minSize=(smallest, smallest)
        )
        middles = np.array([(ex + ew / 2, ey + eh / 2) for ex, ey, ew, eh in found]).reshape(-1, 2) / enlarge
        best, best_count = None, 0
        for i in range(len(middles)):
            for j in range(len(middles)):
                across = middles[j] - middles[i]
                if 0.25 * w < across[0] < 0.65 * w and abs(across[1]) < 0.35 * across[0]:
                    count = int(counts[i]) + int(counts[j])
                    if count > best_count:
                        best, best_count = np.array([middles[i], middles[j]]), count
        return None if best is None else best + np.array([x, y])


def landmarks_from_eyes(eyes_22: NDArray[np.float64]) -> NDArray[np.float32]:
    """Estimate five landmarks (5, 2) from the eyes by the proportions of an average frontal face."""
    middle, across = eyes_22.mean(0), eyes_22[1] - eyes_22[0]
    down = np.array([-across[1], across[0]])
    nose, mouth = middle + NOSE_DOWN * down, middle + MOUTH_DOWN * down
    return np.stack([*eyes_22, nose, mouth - MOUTH_HALF * across, mouth + MOUTH_HALF * across]).astype(np.float32)
