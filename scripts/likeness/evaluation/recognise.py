"""Faces of generated images and of the subject's photos, by the recogniser of the evaluation, each a stored item.

Where the recogniser's weights are absent, the embedded detector and its descriptor stand in: then csim is null with the
reason, `descriptor_cosine` is measured, and the choice says so. Of several faces the largest and most central one
counts, so that a score never picks the face that suits it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from likeness.config.evaluation import EvaluationSettings
from likeness.config.faces import FaceSettings
from likeness.errors import UserError
from likeness.evaluation.judge import DESCRIPTOR_BACKEND, DESCRIPTOR_PREFIX, is_descriptor
from likeness.store import Store, item_key

VERSION = 1
STAGE = "score-faces"
OWN_KEYS = {"faces.model": "evaluation.recogniser", "faces.backend": "evaluation.recogniser_backend"}
"""What the keys that a backend of the faces stage names in its errors are called here."""


class Recogniser:
    """Detects and embeds at the first miss; `status` is 'ok' or says which weights are absent."""

    def __init__(self, settings: EvaluationSettings, store: Store, offline: bool) -> None:
        self.store, self.offline, self.threads = store, offline, settings.cpu_threads
        self.enlarge_to_px = settings.enlarge_to_px
        self.status = "ok"
        self.models_loaded = 0
        self.embedding_kind: str | None = None
        self.settings = FaceSettings.model_validate(
            {
                "backend": settings.recogniser_backend,
                "model": settings.recogniser.model_dump(),
                "detection_size_px": settings.detection_size_px,
                "min_score": settings.min_score,
            }
        )
        self._detector: Any = None
        try:
            with own_keys():
                self.fingerprint = self._class().fingerprint(self.settings, store.root)
        except UserError as error:
            self._stand_in(error)

    def _stand_in(self, error: UserError) -> None:
        if self.settings.backend == DESCRIPTOR_BACKEND:
            raise error
        self.status = f"no_weights: {error}"
        self.settings = self.settings.model_copy(update={"backend": DESCRIPTOR_BACKEND})
        self.fingerprint = self._class().fingerprint(self.settings, self.store.root)

    def _class(self) -> Any:
        from likeness.faces.detector import detector_class

        return detector_class(self.settings.backend)

    @property
    def is_recogniser(self) -> bool:
        """Whether embeddings come from a network that was trained to tell people apart."""
        if self.embedding_kind is not None:
            return not self.embedding_kind.startswith(DESCRIPTOR_PREFIX)
        return self.settings.backend != DESCRIPTOR_BACKEND

    @property
    def name(self) -> str:
        """What made the embeddings, for tables."""
        return self.embedding_kind or f"{self.settings.backend}-{self.fingerprint[:12]}"

    @property
    def identity(self) -> list[Any]:
        """What a face item depends on beside the picture."""
        return [self.settings.backend, self.settings.detection_size_px, self.settings.min_score, self.enlarge_to_px]

    def check_calibration(self, made_by: str) -> None:
        """UserError where the base was scored by a recogniser and a descriptor stands in here, or the other way round.

        Levels of one say nothing about cosines of the other.
        """
        stands_in = self.status != "ok"
        if stands_in and not is_descriptor(made_by):
            raise UserError(
                f"the base's images were scored by {made_by}, which is not to be found now "
                f"({self.status.removeprefix('no_weights: ')}). Put its files back, or score all without it: "
                "run once more with --forcerun score_base."
            )
        if not stands_in and self.settings.backend != DESCRIPTOR_BACKEND and is_descriptor(made_by):
            raise UserError(
                f"the base's images were scored by {made_by}, since the files of evaluation.recogniser were not there. "
                "Now they are: run once more with --forcerun score_base."
            )

    def faces(self, content: str, load: Callable[[], NDArray[np.uint8]]) -> list[Any]:
        """Faces of a picture (its content's sha256, and how to load it as image_HWC), the largest and most central first."""
        from likeness.faces.detector import face_from_record

        key = item_key(STAGE, VERSION, self.identity, self.fingerprint, content)
        item = self.store.load_or_compute(STAGE, key, lambda: ({"faces": self._detect(load())}, {}))
        faces = [face_from_record(record) for record in item.record["faces"]]
        for face in faces:
            self.embedding_kind = self.embedding_kind or face.embedding_kind
        return faces

    def face(self, content: str, load: Callable[[], NDArray[np.uint8]]) -> Any | None:
        """The one face that counts, or None."""
        return next(iter(self.faces(content, load)), None)

    def _detect(self, image_HWC: NDArray[np.uint8]) -> list[dict[str, Any]]:
        from likeness.faces.detector import face_record
        from likeness.faces.select import clipped, ordered

        if self._detector is None:
            with own_keys():
                self._detector = self._class()(self.settings, Path(self.store.root), self.offline, self.threads)
            self.models_loaded += 1
        height, width = image_HWC.shape[:2]
        inside = [clipped(face, height, width) for face in self._detector.detect(image_HWC)]
        found = [face for face in inside if face is not None and face.score >= self.settings.min_score]
        return [face_record(face) for face in ordered(found, height, width, self.settings.max_faces)]


@contextlib.contextmanager
def own_keys() -> Iterator[None]:
    """Name the evaluation's keys in errors of a backend of the faces stage."""
    try:
        yield
    except UserError as error:
        text = str(error)
        for theirs, own in OWN_KEYS.items():
            text = text.replace(theirs, own)
        raise UserError(text) from error


def mean_direction(embeddings_ND: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Mean of unit embeddings scaled to length 1; None where they cancel out or there are none."""
    if len(embeddings_ND) == 0:
        return None
    mean_D = embeddings_ND.mean(axis=0)
    length = float(np.linalg.norm(mean_D))
    return mean_D / length if length > 1e-9 else None
