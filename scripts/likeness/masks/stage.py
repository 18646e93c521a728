"""Make the masks of candidate faces, one store item a (photo, face): a job whose items are all stored loads no model.

A photo's own mask, drawn by hand, always wins over the backend. It is every kind: training reads it whatever kind it asks
for. Measures of quality do not (`quality.measure.mask_hashes`), since nobody knows what it shows.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from likeness.config.masks import MaskSettings
from likeness.faces.crop import CropGeometry, cut_mask, decode_png, encode_png
from likeness.faces.detector import Face
from likeness.faces.stage import load_checked
from likeness.masks.folder import BY_HAND, read_mask
from likeness.masks.grow import cleaned, grown, judged, resized
from likeness.masks.masker import Masker, masker_class
from likeness.photos.images import ImageRef, read_image_rows
from likeness.photos.load import read_photo_bytes
from likeness.store import Item, Store, item_key, sha256_of_bytes

VERSION = 1
BY_HAND_VERSION = 2
CROP_VERSION = 1

Row = dict[str, Any]


def masks_by_hand(table_path: Path) -> dict[tuple[str, str], str]:
    """The user's own masks that a photos or pairs table names: {(id, role): path}; a pair's belongs to its target."""
    rows = [row for row in read_image_rows(table_path) if row["status"] == "ok" and row["mask_path"]]
    return {(row["id"], "target" if "target_path" in row else "photo"): row["mask_path"] for row in rows}


class MaskStageRunner:
    """Makes the masks of rows of the FACES table; `models_loaded` counts for the job's summary."""

    def __init__(self, settings: MaskSettings, store: Store, offline: bool, threads: int) -> None:
        self.settings, self.store, self.offline, self.threads = settings, store, offline, threads
        self.models_loaded = 0
        self._masker: Masker | None = None
        self._last: tuple[str, NDArray[np.uint8]] | None = None

    @cached_property
    def _class(self) -> Any:
        return masker_class(self.settings.backend)

    @cached_property
    def fingerprint(self) -> str:
        """Names the weights; they need not be there for photos without a face and for masks drawn by hand."""
        return self._class.fingerprint(self.settings, self.store.root, self.offline)

    def rows(self, image: ImageRef, face_row: Mapping[str, Any], by_hand: str | None) -> list[Row]:
        """Rows of the MASKS table for one row of the FACES table, one a kind."""
        names = {"id": image.id, "role": image.role, "face": face_row["face"]}
        backend = BY_HAND if by_hand else self.settings.backend
        if by_hand is None and face_row["face"] is None:
            return [
                {**names, "kind": kind, "backend": backend, "status": face_row["status"], "reason": face_row["reason"]}
                for kind in self.settings.kinds
            ]
        if face_row["image_width_px"] is None:
            reason = face_row["reason"]
            return [
                {**names, "kind": k, "backend": backend, "status": face_row["status"], "reason": reason}
                for k in self.settings.kinds
            ]
        if by_hand is None and self.settings.backend == BY_HAND:
            reason = f"{image.path}: no mask of that name lies in the masks folder. Add one, or choose another masks.backend."
            return [
                {**names, "kind": k, "backend": backend, "status": "no_mask", "reason": reason}
                for k in self.settings.kinds
            ]
        made = self._made(image, face_row, by_hand)
        return [{**names, **self._row(image, face_row, made, kind, backend)} for kind in self.settings.kinds]

    def _row(self, image: ImageRef, face_row: Mapping[str, Any], made: Item, kind: str, backend: str) -> Row:
        facts, sha256 = made.record[kind], made.files[kind]
        crop_sha256 = None if face_row["crop_sha256"] is None else self._on_crop(sha256, face_row)
        return {
            "kind": kind,
            "mask_sha256": sha256,
            "crop_mask_sha256": crop_sha256,
            "area_fraction": facts["area_fraction"],
            "backend": backend,
            "status": facts["status"],
            "reason": f"{image.path}: {facts['reason']}." if facts["reason"] else "",
        }

    def _pixels(self, image: ImageRef) -> NDArray[np.uint8]:
        if self._last is None or self._last[0] != image.sha256:
            self._last = (image.sha256, load_checked(image))
        return self._last[1]

    def _made(self, image: ImageRef, face_row: Mapping[str, Any], by_hand: str | None) -> Item:
        """The item of all kinds' masks on the photo's grid: record {kind: facts}, files {kind: PNG}."""
        face = face_of_row(face_row) if face_row["face"] is not None else None
        place = None if face is None else [list(face.box), face_row["landmarks"]]
        size = face_row["image_height_px"], face_row["image_width_px"]
        settings = {"kinds": list(self.settings.kinds), "grow_px": dict(self.settings.grow_px)}

        if by_hand:
            content = [sha256_of_bytes(read_photo_bytes(by_hand)), list(size), place]
            key = item_key("masks", BY_HAND_VERSION, settings, BY_HAND, content)
            return self.store.load_or_compute(
                "masks", key, lambda: self._pack(face, lambda _: read_mask(by_hand, *size))
            )

        assert face is not None, "without a face there is no mask to make"
        settings |= {"backend": self.settings.backend, "working_side_px": self.settings.working_side_px}
        key = item_key("masks", VERSION, settings, self.fingerprint, [image.sha256, place])
        return self.store.load_or_compute("masks", key, lambda: self._compute(image, face))

    def _compute(self, image: ImageRef, face: Face) -> tuple[dict[str, Any], dict[str, bytes]]:
        image_HWC = self._pixels(image)
        if self._masker is None:
            self._masker = self._class(self.settings, self.store.root, self.offline, self.threads)
            self.models_loaded += 1
        masker = self._masker
        assert masker is not None
        height, width = image_HWC.shape[:2]
        small_HWC, small_face = at_working_size(image_HWC, face, self.settings.working_side_px)
        return self._pack(face, lambda kind: cleaned(resized(masker.mask(small_HWC, small_face, kind), height, width)))

    def _pack(
        self, face: Face | None, mask_of: Callable[[Any], NDArray[np.bool_]]
    ) -> tuple[dict[str, Any], dict[str, bytes]]:
        record, files = {}, {}
        for kind in self.settings.kinds:
            mask_HW = grown(mask_of(kind), self.settings.grow_px.get(kind, 0))
            if face is None:
                status, reason = ("ok", "") if mask_HW.any() else ("empty_mask", f"the {kind} mask is empty")
            else:
                status, reason = judged(mask_HW, face, kind)
            record[kind] = {"area_fraction": float(mask_HW.mean()), "status": status, "reason": reason}
            files[kind] = encode_png(mask_HW.astype(np.uint8) * 255)
        return record, files

    def _on_crop(self, mask_sha256: str, face_row: Mapping[str, Any]) -> str:
        """Cut a stored mask on the grid of the face's crop; returns the PNG's sha256."""
        with Image.open(io.BytesIO(self.store.read_blob(face_row["crop_sha256"]))) as crop:
            size_px = crop.width
        x0, y0, side, angle = (face_row[name] for name in ("crop_x0", "crop_y0", "crop_side_px", "crop_angle_deg"))
        geometry = CropGeometry(x0, y0, side, angle, size_px)

        def compute() -> tuple[dict[str, Any], dict[str, bytes]]:
            mask_HW = decode_png(self.store.read_blob(mask_sha256), mask_sha256) > 127
            return {}, {"mask": encode_png(cut_mask(mask_HW, geometry).astype(np.uint8) * 255)}

        key = item_key("crop_masks", CROP_VERSION, None, "", [mask_sha256, [x0, y0, side, angle], size_px])
        return self.store.load_or_compute("crop_masks", key, compute).files["mask"]


def face_of_row(row: Mapping[str, Any]) -> Face:
    """The face that a row of the FACES table describes."""
    points = row["landmarks"]
    return Face(
        box=(row["x0"], row["y0"], row["x1"], row["y1"]),
        landmarks_52=None if points is None else np.asarray(points, np.float32).reshape(5, 2),
        score=row["score"],
    )


def at_working_size(image_HWC: NDArray[np.uint8], face: Face, side_px: int) -> tuple[NDArray[np.uint8], Face]:
    """Shrink an image and its face so that the longer side is at most `side_px`."""
    height, width = image_HWC.shape[:2]
    if max(height, width) <= side_px:
        return image_HWC, face
    scale = side_px / max(height, width)
    small_h, small_w = max(1, round(height * scale)), max(1, round(width * scale))
    small_HWC = cv2.resize(image_HWC, (small_w, small_h), interpolation=cv2.INTER_AREA)
    factor = np.array([small_w / width, small_h / height])
    x0, y0, x1, y1 = (np.asarray(face.box) * np.tile(factor, 2)).tolist()
    points = None if face.landmarks_52 is None else (face.landmarks_52 * factor).astype(np.float32)
    return np.asarray(small_HWC, np.uint8), replace(face, box=(x0, y0, x1, y1), landmarks_52=points)
