"""Detector: the real insightface `FaceAnalysis` on a pack that already lies on this machine.

insightface downloads whatever name it does not find, a mistyped folder included, without a checksum; and it takes a
half-unpacked folder for a whole one. So the pack is found and checked first (pack_folder.py), and only an existing folder is
handed over. The released packs are for non-commercial research only; the error that asks for one says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from likeness.config.faces import FaceSettings
from likeness.errors import UserError
from likeness.faces.detector import Face, Pose, unit_length
from likeness.faces.pack_folder import LICENCE, find_pack
from likeness.faces.recogniser import embedding_kind, keep_quiet
from likeness.faces.weights import check_sha256, model_fingerprint

MODULES = ("detection", "recognition", "landmark_3d_68")


class InsightfaceDetector:
    """SCRFD boxes and landmarks, ArcFace embeddings, and 3D pose where the pack has `1k3d68.onnx`."""

    def __init__(self, settings: FaceSettings, store_root: Path, offline: bool, threads: int) -> None:
        folder = find_pack(settings.model.source)
        check_sha256("faces.model", settings.model, folder, store_root)
        keep_quiet()
        import cv2

        cv2.setNumThreads(threads)
        self._app = _load_pack(folder, threads)
        self._app.prepare(
            ctx_id=0, det_thresh=settings.min_score, det_size=(settings.detection_size_px, settings.detection_size_px)
        )
        recogniser = Path(str(self._app.models["recognition"].model_file))
        self._embedding_kind = embedding_kind(recogniser, store_root)

    @classmethod
    def fingerprint(cls, settings: FaceSettings, store_root: Path) -> str:
        """The configured sha256 or revision, else the digest of the pack's files; raises UserError where the pack is absent."""
        known = settings.model.sha256 or settings.model.revision
        folder = None if known else find_pack(settings.model.source)
        return model_fingerprint(settings.model, folder, store_root)

    def detect(self, image_HWC: NDArray[np.uint8]) -> list[Face]:
        """Find faces in an upright RGB image, (H, W, 3) uint8; insightface itself reads BGR."""
        found = self._app.get(np.ascontiguousarray(image_HWC[..., ::-1]))
        return [self._face(face) for face in found]

    def _face(self, face: Any) -> Face:
        x0, y0, x1, y1 = (float(value) for value in face.bbox)
        pose = None
        if face.pose is not None:
            pitch, yaw, roll = (float(value) for value in face.pose)
            pose = Pose(yaw, pitch, roll)
        embedding = None if face.embedding is None else unit_length(np.asarray(face.embedding, np.float64))
        return Face(
            box=(x0, y0, x1, y1),
            landmarks_52=None if face.kps is None else np.asarray(face.kps, np.float32),
            score=float(face.det_score),
            pose=pose,
            embedding_D=embedding,
            embedding_kind=self._embedding_kind if embedding is not None else None,
        )


def _load_pack(folder: Path, threads: int) -> Any:
    import onnxruntime
    from insightface.app import FaceAnalysis

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    available = onnxruntime.get_available_providers()
    providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available]
    try:
        app = FaceAnalysis(
            name=str(folder.resolve()), allowed_modules=list(MODULES), providers=providers, sess_options=options
        )
    except AssertionError:
        raise UserError(
            f"faces.model: no detector among the .onnx files of the insightface pack in the folder {folder}. {LICENCE}"
        ) from None
    except Exception as error:  # onnxruntime and onnx raise many kinds for a torn file
        raise UserError(
            f"faces.model: a file of the insightface pack in the folder {folder} cannot be loaded ({error}). "
            "Fetch the pack again: an interrupted unpacking leaves torn files."
        ) from error
    if "recognition" not in app.models:
        raise UserError(
            f"faces.model: no ArcFace recogniser among the .onnx files of the insightface pack in the folder {folder}. {LICENCE}"
        )
    return app
