"""The door to face detectors: one small protocol, chosen by name.

Images are upright uint8 RGB, axes H rows, W columns, C colour channels. Points and boxes are in px of that image, x to
the right, y down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from likeness.backends import load_backend
from likeness.config.faces import FaceSettings
from likeness.faces.shipped import FACES


@dataclass(frozen=True)
class Pose:
    """Where a head looks, in degrees; None where it is unknown.

    yaw_deg: negative when the nose turns to the viewer's left. pitch_deg: positive when the head looks up. roll_deg:
    positive when the head is tilted clockwise for the viewer.
    """

    yaw_deg: float | None = None
    pitch_deg: float | None = None
    roll_deg: float | None = None


@dataclass(frozen=True)
class Face:
    """One detected face.

    box: left, top, right, bottom. landmarks_52: float32 (5, 2), eyes, nose, mouth corners, image left first; None where
    unknown. score: 0..1. pose: None where the detector measures none (it is then estimated from the landmarks).
    embedding_D: float32 unit length, or None; embedding_kind names what made it.
    """

    box: tuple[float, float, float, float]
    landmarks_52: NDArray[np.float32] | None
    score: float
    pose: Pose | None = None
    embedding_D: NDArray[np.float32] | None = None
    embedding_kind: str | None = None


class Detector(Protocol):
    """Finds faces; made by `cls(settings, store_root, offline, threads)`, which loads the model or raises UserError.

    `fingerprint(settings, store_root)` of the class names the weights without loading them.
    """

    @classmethod
    def fingerprint(cls, settings: FaceSettings, store_root: Path) -> str: ...

    def detect(self, image_HWC: NDArray[np.uint8]) -> list[Face]: ...


def detector_class(name: str) -> Any:
    """Import the detector that `faces.backend` names; raises UserError with the nearest name."""
    return load_backend("faces", name, FACES)


def unit_length(vector_D: NDArray) -> NDArray[np.float32] | None:
    """Scale an embedding to length 1; None where it has no length or is not finite."""
    length = float(np.linalg.norm(vector_D))
    return (vector_D / length).astype(np.float32) if np.isfinite(length) and length > 0 else None


def face_record(face: Face) -> dict[str, Any]:
    """Write a face as JSON for the store."""
    return {
        "box": [float(value) for value in face.box],
        "landmarks": None if face.landmarks_52 is None else [float(v) for v in face.landmarks_52.ravel()],
        "score": float(face.score),
        "pose": None if face.pose is None else [face.pose.yaw_deg, face.pose.pitch_deg, face.pose.roll_deg],
        "embedding": None if face.embedding_D is None else [float(v) for v in face.embedding_D],
        "embedding_kind": face.embedding_kind,
    }


def face_from_record(record: Mapping[str, Any]) -> Face:
    """Read a face back from the store."""
    x0, y0, x1, y1 = record["box"]
    points, embedding = record["landmarks"], record["embedding"]
    return Face(
        box=(x0, y0, x1, y1),
        landmarks_52=None if points is None else np.asarray(points, np.float32).reshape(5, 2),
        score=record["score"],
        pose=None if record["pose"] is None else Pose(*record["pose"]),
        embedding_D=None if embedding is None else np.asarray(embedding, np.float32),
        embedding_kind=record["embedding_kind"],
    )
