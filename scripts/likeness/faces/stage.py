"""Detect faces and cut crops, one store item an image and one a crop: a job whose items are all stored loads no model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from likeness.config.faces import CropSettings, FaceSettings
from likeness.errors import UserError
from likeness.faces.crop import CropGeometry, border_share, crop_geometry, cut, encode_png
from likeness.faces.detector import Detector, Face, detector_class, face_from_record, face_record
from likeness.faces.select import clipped, ordered, pose_of, without_doubles
from likeness.photos.images import ImageRef
from likeness.photos.load import PhotoError, decode_photo, read_photo_bytes
from likeness.store import Item, Store, item_key, sha256_of_bytes

VERSION = 1
CROP_VERSION = 1
NOT_LOOKED_FOR = "not_looked_for"
"""Status of an image in which no face was looked for: it may show any."""


def load_checked(image: ImageRef) -> NDArray[np.uint8]:
    """Read a photo as upright RGB (H, W, 3); raises UserError if its bytes are no longer those that were indexed."""
    data = read_photo_bytes(image.path)
    if sha256_of_bytes(data) != image.sha256:
        raise UserError(
            f"{image.path}: the file of {image.id!r} changed after it was indexed. Run the same command again."
        )
    return decode_photo(data, image.path)


class FaceStageRunner:
    """Detects the faces of images, one after another; `models_loaded` counts for the job's summary."""

    def __init__(self, settings: FaceSettings, store: Store, offline: bool, threads: int) -> None:
        self.settings, self.store, self.offline, self.threads = settings, store, offline, threads
        self.models_loaded = 0
        self._class = detector_class(settings.backend)
        self._detector: Detector | None = None
        self.fingerprint: str = self._class.fingerprint(settings, store.root)
        self._last: tuple[str, NDArray[np.uint8]] | None = None

    @property
    def detection_settings(self) -> dict[str, Any]:
        """What detection depends on: neither crops nor the identity threshold."""
        chosen = self.settings.model_dump(mode="json", exclude={"crop", "min_identity"})
        # Weights count by their bytes (the fingerprint), not by where they lie.
        recogniser = chosen.pop("recogniser")
        return {**chosen, "model": None, "recogniser": recogniser is not None}

    def rows(self, image: ImageRef) -> list[dict[str, Any]]:
        """Rows of the FACES table for one image: one a candidate, or one with face null and the reason."""
        try:
            item = self._detected(image)
            size = item.record["height_px"], item.record["width_px"]
            faces = [face_from_record(record) for record in item.record["faces"]]
            if not faces:
                return [self._row_without_face(image, size, "no_face", f"{image.path}: no face found.")]
            return [self._row(image, size, number, face) for number, face in enumerate(faces)]
        except PhotoError as error:
            return [self._row_without_face(image, (image.height_px, image.width_px), error.status, str(error))]

    def faces_of(self, image: ImageRef) -> list[Face]:
        """The candidate faces of one image, largest and most central first."""
        return [face_from_record(record) for record in self._detected(image).record["faces"]]

    def _pixels(self, image: ImageRef) -> NDArray[np.uint8]:
        if self._last is None or self._last[0] != image.sha256:
            self._last = (image.sha256, load_checked(image))
        return self._last[1]

    def _detected(self, image: ImageRef) -> Item:
        def compute() -> tuple[dict[str, Any], dict[str, bytes]]:
            image_HWC = self._pixels(image)
            detector = self._detector
            if detector is None:
                detector = self._detector = self._class(self.settings, self.store.root, self.offline, self.threads)
                self.models_loaded += 1
            height, width = image_HWC.shape[:2]
            found = [clipped(face, height, width) for face in detector.detect(image_HWC)]
            kept = [face for face in found if face is not None and face.score >= self.settings.min_score]
            faces = ordered(without_doubles(kept), height, width, self.settings.max_faces)
            return {"height_px": height, "width_px": width, "faces": [face_record(face) for face in faces]}, {}

        key = item_key("faces", VERSION, self.detection_settings, self.fingerprint, image.sha256)
        return self.store.load_or_compute("faces", key, compute)

    def _row_without_face(
        self, image: ImageRef, size: tuple[int | None, int | None], status: str, reason: str
    ) -> dict[str, Any]:
        return {
            "id": image.id,
            "role": image.role,
            "image_height_px": size[0],
            "image_width_px": size[1],
            "status": status,
            "reason": reason,
        }

    def _row(self, image: ImageRef, size: tuple[int, int], number: int, face: Face) -> dict[str, Any]:
        geometry = crop_geometry(face, self.settings.crop)
        crop = self._crop(image, geometry)
        pose = pose_of(face)
        small = geometry.side_px < self.settings.crop.min_pixels
        return {
            "id": image.id,
            "role": image.role,
            "face": number,
            **dict(zip(("x0", "y0", "x1", "y1"), face.box, strict=True)),
            "landmarks": None if face.landmarks_52 is None else face.landmarks_52.ravel().tolist(),
            "score": face.score,
            "yaw_deg": pose.yaw_deg,
            "pitch_deg": pose.pitch_deg,
            "roll_deg": pose.roll_deg,
            "embedding": None if face.embedding_D is None else face.embedding_D.tolist(),
            "embedding_kind": face.embedding_kind,
            "image_height_px": size[0],
            "image_width_px": size[1],
            "crop_x0": geometry.x0,
            "crop_y0": geometry.y0,
            "crop_side_px": geometry.side_px,
            "crop_angle_deg": geometry.angle_deg,
            "crop_border": crop.record["border"],
            "crop_sha256": crop.files["crop"],
            "status": "small_face" if small else "ok",
            "reason": small_face_reason(image.path, geometry, self.settings.crop) if small else "",
        }

    def _crop(self, image: ImageRef, geometry: CropGeometry) -> Item:
        def compute() -> tuple[dict[str, Any], dict[str, bytes]]:
            image_HWC = self._pixels(image)
            border = border_share(geometry, *image_HWC.shape[:2])
            return {"border": border}, {"crop": encode_png(cut(image_HWC, geometry))}

        place = [geometry.x0, geometry.y0, geometry.side_px, geometry.angle_deg, geometry.size_px]
        key = item_key("crops", CROP_VERSION, None, "", [image.sha256, place])
        return self.store.load_or_compute("crops", key, compute)


def row_unseen(image: ImageRef) -> dict[str, Any]:
    """The row of the FACES table of an image in which nobody looks for faces (faces.backend none)."""
    return {
        "id": image.id,
        "role": image.role,
        "image_height_px": image.height_px,
        "image_width_px": image.width_px,
        "status": NOT_LOOKED_FOR,
        "reason": "faces.backend is none, so no face was looked for.",
    }


def small_face_reason(path: str, geometry: CropGeometry, settings: CropSettings) -> str:
    """Say that a crop has too few real pixels."""
    return (
        f"{path}: the face's crop is {geometry.side_px:.0f} px wide in the photo; faces.crop.min_pixels asks for "
        f"{settings.min_pixels}. Use a larger photo or lower the setting."
    )


def reference_images(paths: Sequence[str]) -> list[ImageRef]:
    """Name the user's reference photos like images of a table; raises UserError for a missing file."""
    references = []
    for path in paths:
        data = read_photo_bytes(path)
        references.append(ImageRef(Path(path).stem, "photo", path, sha256_of_bytes(data), None, None, 1))
    return references
