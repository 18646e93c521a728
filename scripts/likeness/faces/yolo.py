"""Detector: YOLO face weights through ultralytics, which is AGPL and therefore never imported by this process.

It runs as a child (`yolo_worker.py`) with telemetry, look-ups, installs and pickled code switched off and with a
settings folder of its own, talks JSON over pipes, and sees images as .npy files of a temporary folder. Embeddings come
from any ArcFace ONNX file, loaded here, on faces aligned by their five landmarks.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from likeness.config.faces import FaceSettings
from likeness.errors import UserError
from likeness.faces.detector import Face
from likeness.faces.recogniser import Recogniser
from likeness.faces.weights import check_sha256, model_fingerprint, weight_file

WORKER = Path(__file__).with_name("yolo_worker.py")


def quiet_environment(config_folder: Path, threads: int) -> dict[str, str]:
    """Environment of the child: no statistics, no look-ups, no installs, no pickled code, no key, settings of its own."""
    kept = {name: value for name, value in os.environ.items() if name != "ULTRALYTICS_API_KEY"}
    return kept | {
        "YOLO_OFFLINE": "1",
        "YOLO_AUTOINSTALL": "0",
        "YOLO_CONFIG_DIR": str(config_folder),
        "YOLO_VERBOSE": "0",
        "ULTRALYTICS_SKIP_REQUIREMENTS_CHECKS": "1",
        "ULTRALYTICS_SAFE_LOAD": "1",
        "MPLCONFIGDIR": str(config_folder),
        "OMP_NUM_THREADS": str(threads),
    }


class YoloDetector:
    """Boxes and, from pose weights with five points, landmarks; embeddings where a recogniser and landmarks are."""

    def __init__(self, settings: FaceSettings, store_root: Path, offline: bool, threads: int) -> None:
        weights = weight_file("faces.model", settings.model, "the YOLO face weights")
        check_sha256("faces.model", settings.model, weights, store_root)
        if find_spec("ultralytics") is None:
            raise UserError(
                "faces.backend: yolo needs the optional extra `yolo` (the package ultralytics, AGPL-3.0). Install it, or choose "
                "insightface or opencv."
            )
        self._recogniser = None
        if settings.recogniser is not None:
            file = weight_file("faces.recogniser", settings.recogniser, "the ArcFace recogniser")
            check_sha256("faces.recogniser", settings.recogniser, file, store_root)
            self._recogniser = Recogniser(file, store_root, threads)
        self._folder = tempfile.TemporaryDirectory(prefix="likeness-yolo-")
        arguments = [weights.resolve(), settings.detection_size_px, settings.min_score, settings.max_faces, threads]
        self._child = subprocess.Popen(
            # -P: the worker's own folder, this package, must not be searched for the standard library's modules.
            [sys.executable, "-P", str(WORKER), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=self._folder.name,
            env=quiet_environment(Path(self._folder.name), threads),
        )
        greeting = self._read()
        if "error" in greeting:
            self.close()
            raise UserError(
                f"faces.model: {weights.name} in the folder {weights.parent} cannot be loaded by ultralytics ({greeting['error']})."
            )

    @classmethod
    def fingerprint(cls, settings: FaceSettings, store_root: Path) -> str:
        """Fingerprints of the YOLO weights and of the recogniser; raises UserError where a file is absent."""
        parts = []
        models = (
            ("model", settings.model, "the YOLO face weights"),
            ("recogniser", settings.recogniser, "the ArcFace recogniser"),
        )
        for name, model, what in models:
            if model is not None:
                known = model.sha256 or model.revision
                path = None if known else weight_file(f"faces.{name}", model, what)
                parts.append(model_fingerprint(model, path, store_root))
        return "+".join(parts)

    def detect(self, image_HWC: NDArray[np.uint8]) -> list[Face]:
        """Find faces in an upright RGB image, (H, W, 3) uint8; ultralytics reads BGR arrays."""
        picture = Path(self._folder.name) / "image.npy"
        np.save(picture, np.ascontiguousarray(image_HWC[..., ::-1]))
        assert self._child.stdin is not None
        print(json.dumps({"image": str(picture)}), file=self._child.stdin, flush=True)
        answer = self._read()
        faces = []
        for number, (x0, y0, x1, y1, score) in enumerate(answer["boxes"]):
            points = None if answer["landmarks"] is None else np.array(answer["landmarks"][number], np.float32)
            embedding = None
            if self._recogniser is not None and points is not None:
                embedding = self._recogniser.embed(image_HWC, points)
            kind = self._recogniser.kind if self._recogniser is not None and embedding is not None else None
            faces.append(Face((x0, y0, x1, y1), points, score, None, embedding, kind))
        return faces

    def close(self) -> None:
        """End the child and remove its folder."""
        if self._child.stdin is not None:
            with contextlib.suppress(OSError):
                self._child.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(timeout=10)
        if self._child.poll() is None:
            self._child.kill()
            self._child.wait()
        if self._child.stdout is not None:
            self._child.stdout.close()
        self._folder.cleanup()

    def __del__(self) -> None:
        if hasattr(self, "_child"):
            self.close()

    def _read(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise RuntimeError(f"the YOLO process ended with exit code {self._child.wait()}; its messages stand above")
        return json.loads(line)
