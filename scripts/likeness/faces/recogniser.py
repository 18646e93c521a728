"""An ArcFace ONNX file as a recogniser, through insightface's own class: alignment by five points, then an embedding."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from likeness.errors import UserError
from likeness.faces.detector import unit_length
from likeness.faces.weights import files_fingerprint


def keep_quiet() -> None:
    """Switch onnxruntime's telemetry off before its first import, and a deprecation inside of insightface's alignment."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    warnings.filterwarnings("ignore", message="`estimate` is deprecated", category=FutureWarning)


def embedding_kind(file: Path, store_root: Path) -> str:
    """Name embeddings after the recogniser that makes them: file name and the head of its sha256."""
    return f"arcface-{file.stem}-{files_fingerprint(file, store_root)[:12]}"


class Recogniser:
    """ArcFace embeddings of aligned faces; `kind` names the recogniser."""

    def __init__(self, file: Path, store_root: Path, threads: int) -> None:
        keep_quiet()
        import onnxruntime
        from insightface.model_zoo.arcface_onnx import ArcFaceONNX

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = threads
        available = onnxruntime.get_available_providers()
        providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available]
        try:
            session = onnxruntime.InferenceSession(str(file), options, providers=providers)
            self._model: Any = ArcFaceONNX(str(file), session)
        except Exception as error:  # onnxruntime and onnx raise many kinds for torn or foreign files
            raise UserError(
                f"faces.recogniser: {file.name} in the folder {file.parent} is no ArcFace model ({error})."
            ) from error
        self.kind = embedding_kind(file, store_root)

    def embed(self, image_HWC: NDArray[np.uint8], landmarks_52: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """Embed one face of an upright RGB image: (D,) unit length, or None where the model gives none."""
        from insightface.utils import face_align

        side = self._model.input_size[0]
        aligned = face_align.norm_crop(
            np.ascontiguousarray(image_HWC[..., ::-1]), landmark=landmarks_52, image_size=side
        )
        return unit_length(np.asarray(self._model.get_feat(aligned), np.float64).ravel())
