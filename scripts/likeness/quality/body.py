"""Body keypoints by a ViTPose model of transformers, and the framing that they tell.

Face height against frame height misjudges a portrait with much air around it; visible hips and ankles do not. What the
model finds depends on the person's box alone, so that callers keep it as an item of the store and load nothing again.

Axes: H rows, W columns, C colour channels (red, green, blue; uint8), K keypoints (the 17 of COCO), 2 = (x, y) in px of
the picture with the origin at its upper left corner.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from likeness.config.base import ModelSource
from likeness.errors import UserError
from likeness.faces.weights import check_sha256, hub_folder, model_fingerprint
from likeness.quality.regions import Image, View

VERSION = 1
STAGE = "body"
WEIGHTS = "model.safetensors"
FILES = ("config.json", WEIGHTS, "preprocessor_config.json")
KEYPOINTS = 17
SHOULDERS, HIPS, ANKLES = (5, 6), (11, 12), (15, 16)
"""Places of left and right among the 17 COCO keypoints."""
LEAST_KEYPOINT_SCORE = 0.3
"""Confidence (0..1) from which a keypoint counts as seen."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Keypoints:
    """Where the model puts the 17 keypoints (perhaps outside the picture), and how sure it is of each."""

    points_K2: NDArray[np.float64]
    scores_K: NDArray[np.float64]


class BodyModel:
    """A ViTPose model in transformers layout; its folder is looked for, and the model loaded, where first needed.

    `key` is the setting that errors name. With a configured revision or sha256 a full store needs no folder at all.
    """

    def __init__(self, key: str, source: ModelSource, store_root: Path, offline: bool) -> None:
        self.key, self.source, self.store_root, self.offline = key, source, store_root, offline

    @cached_property
    def folder(self) -> Path:
        """The model's folder; raises UserError naming key, folder and files where something is absent."""
        return hub_folder(self.key, self.source, FILES, self.offline)

    @cached_property
    def fingerprint(self) -> str:
        """The configured sha256 or revision, else the digest of the folder's files."""
        pinned = self.source.sha256 or self.source.revision
        return model_fingerprint(self.source, None if pinned else self.folder, self.store_root)

    @property
    def loaded(self) -> bool:
        return "model" in vars(self)

    @cached_property
    def model(self) -> Any:
        """The network; raises UserError where its files are torn, another model's, or not the configured ones."""
        from transformers import VitPoseForPoseEstimation

        check_sha256(self.key, self.source, self.folder, self.store_root)
        model, info = self._opened(VitPoseForPoseEstimation, use_safetensors=True, output_loading_info=True)
        if info["missing_keys"]:
            raise UserError(
                f"{self.key}: {WEIGHTS} in the folder {self.folder} lacks {len(info['missing_keys'])} tensors of a ViTPose "
                f"model, first {min(info['missing_keys'])}. Fetch it again, or set {self.key} to a ViTPose model."
            )
        return model.eval()

    @cached_property
    def processor(self) -> Any:
        from transformers import AutoImageProcessor

        return self._opened(AutoImageProcessor)

    def _opened(self, kind: Any, **how: bool) -> Any:
        try:
            return kind.from_pretrained(self.folder, local_files_only=True, **how)
        except Exception as error:  # safetensors, json and transformers raise many kinds for torn or foreign files
            raise UserError(
                f"{self.key}: the files in the folder {self.folder} are not a ViTPose model with its processor ({error}). "
                "Fetch them again."
            ) from error

    def keypoints(self, image_HWC: Image, person_box: Box) -> Keypoints:
        """Find the keypoints of the person in a box (left, top, right, bottom in px); raises UserError for a model of other keypoints."""
        import torch
        from PIL import Image as Pillow

        x0, y0, x1, y1 = person_box
        boxes = [np.array([[x0, y0, x1 - x0, y1 - y0]])]
        model = self.model
        inputs = self.processor(images=Pillow.fromarray(image_HWC), boxes=boxes, return_tensors="pt")
        if model.config.backbone_config.num_experts > 1:
            inputs["dataset_index"] = torch.zeros(1, dtype=torch.int64)
        with torch.no_grad():
            output = model(**inputs)
        found = self.processor.post_process_pose_estimation(output, boxes=boxes)[0][0]
        count = len(found["labels"])
        if count < KEYPOINTS:
            raise UserError(
                f"{self.key}: the model in the folder {self.folder} finds {count} keypoints, but the {KEYPOINTS} of COCO "
                f"are needed. Set {self.key} to a ViTPose model trained on COCO."
            )
        points_K2, scores_K = found["keypoints"][:KEYPOINTS], found["scores"][:KEYPOINTS]
        return Keypoints(points_K2.double().numpy(), scores_K.double().numpy())


def person_box(view: View) -> Box:
    """The box around the person mask in px, else the whole picture: left, top, right, bottom."""
    mask_HW = view.masks_HW.get("person")
    if mask_HW is None or not mask_HW.any():
        return 0.0, 0.0, float(view.size[1]), float(view.size[0])
    rows, columns = np.nonzero(mask_HW.any(axis=1))[0], np.nonzero(mask_HW.any(axis=0))[0]
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def framing_by_keypoints(found: Keypoints, height_px: int, width_px: int) -> str | None:
    """Framing class of a photo of this size: full where an ankle is seen, half where a hip is, else close.

    Seen means confident and inside the picture; one of the two is enough, since the other may be hidden. None where no
    keypoint at all is seen: then the model has found nobody, which tells nothing of the framing.
    """
    x_K, y_K = found.points_K2.T
    inside_K = (x_K >= 0) & (x_K < width_px) & (y_K >= 0) & (y_K < height_px)
    seen_K = inside_K & (found.scores_K >= LEAST_KEYPOINT_SCORE)
    if not seen_K.any():
        return None
    return "full" if seen_K[list(ANKLES)].any() else "half" if seen_K[list(HIPS)].any() else "close"
