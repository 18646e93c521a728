"""Mask maker: SAM 2 through transformers (`Sam2Model`), prompted with a box and points made from the face."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Sam2Model, Sam2Processor

from likeness.config.base import ModelSource
from likeness.config.masks import MaskKind, MaskSettings
from likeness.errors import UserError
from likeness.faces.detector import Face
from likeness.faces.weights import check_sha256, hub_folder, model_fingerprint
from likeness.lease import device_of_job
from likeness.masks.prompts import prompt_for

NEEDED = ("config.json", "model.safetensors")
PROCESSOR = ("processor_config.json", "preprocessor_config.json")


def model_folder(settings: MaskSettings, offline: bool) -> tuple[ModelSource, Path]:
    """Find the model's folder; raises UserError naming files and folder."""
    if settings.model is None:
        raise UserError("masks.model: the sam2 backend needs a folder or hub id with Sam2Model weights; it is not set.")
    folder = hub_folder("masks.model", settings.model, NEEDED, offline)
    if not any((folder / name).is_file() for name in PROCESSOR):
        raise UserError(f"masks.model: the model folder {folder} lacks {' or '.join(PROCESSOR)}. Put the file there.")
    return settings.model, folder


class Sam2Masker:
    """SAM 2; the image is embedded once and asked for each kind."""

    def __init__(self, settings: MaskSettings, store_root: Path, offline: bool, threads: int) -> None:
        model, folder = model_folder(settings, offline)
        check_sha256("masks.model", model, folder, store_root)
        torch.set_num_threads(threads)
        self._device = device_of_job()
        try:
            model: Any = Sam2Model.from_pretrained(folder, local_files_only=True)
            self._model: Any = model.eval().to(self._device)
            self._processor: Any = Sam2Processor.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # safetensors, json and transformers raise many kinds for torn or foreign files
            raise UserError(
                f"masks.model: the files in the folder {folder} are not a Sam2Model with its processor ({error}). Fetch them again."
            ) from error
        self._last: tuple[NDArray[np.uint8], Any] | None = None

    @classmethod
    def fingerprint(cls, settings: MaskSettings, store_root: Path, offline: bool) -> str:
        """The configured sha256 or revision, else the digest of the folder's files."""
        if settings.model is not None and (settings.model.sha256 or settings.model.revision):
            return model_fingerprint(settings.model, None, store_root)
        model, folder = model_folder(settings, offline)
        return model_fingerprint(model, folder, store_root)

    @torch.inference_mode()
    def mask(self, image_HWC: NDArray[np.uint8], face: Face, kind: MaskKind) -> NDArray[np.bool_]:
        """Ask for one kind; returns (H, W)."""
        prompt = prompt_for(face, kind, *image_HWC.shape[:2])
        inputs = self._processor(
            images=image_HWC,
            input_boxes=[[prompt.box_4.tolist()]],
            input_points=[[prompt.points_P2.tolist()]],
            input_labels=[[prompt.labels_P.tolist()]],
            return_tensors="pt",
        ).to(self._device)
        if self._last is None or self._last[0] is not image_HWC:
            self._last = (image_HWC, self._model.get_image_embeddings(inputs["pixel_values"]))
        answer = self._model(
            image_embeddings=self._last[1],
            input_boxes=inputs["input_boxes"],
            input_points=inputs["input_points"],
            input_labels=inputs["input_labels"],
            multimask_output=False,
        )
        masks = self._processor.post_process_masks(answer.pred_masks.cpu(), inputs["original_sizes"].cpu())
        return masks[0].numpy().reshape(-1, *image_HWC.shape[:2])[0].astype(bool)
