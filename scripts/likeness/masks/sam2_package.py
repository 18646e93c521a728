"""Mask maker: SAM 2 through the PyPI package `sam2`, from a checkpoint and the config beside it or shipped with it.

The package downloads nothing here: `masks.model.source` is a `.pt` checkpoint. Its config is a `.yaml` of the same name in
the same folder, else the published config that belongs to the checkpoint's name (sam2.1_hiera_tiny.pt and so on).
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from likeness.config.base import ModelSource
from likeness.config.masks import MaskKind, MaskSettings
from likeness.errors import UserError
from likeness.faces.detector import Face
from likeness.faces.weights import check_sha256, model_fingerprint, weight_file
from likeness.lease import device_of_job
from likeness.masks.prompts import prompt_for

PUBLISHED = {
    f"{version}_hiera_{size}": f"configs/{version}/{version}_hiera_{letter}.yaml"
    for version in ("sam2", "sam2.1")
    for size, letter in (("tiny", "t"), ("small", "s"), ("base_plus", "b+"), ("large", "l"))
}
STRIDES = (4, 8, 16)  # of the three feature maps that the image predictor keeps


def checkpoint_and_config(settings: MaskSettings) -> tuple[ModelSource, Path, str]:
    """Find the checkpoint and name its config as the package wants it; raises UserError naming file and folder."""
    if settings.model is None:
        raise UserError("masks.model: the sam2-package backend needs a SAM 2 checkpoint (.pt); it is not set.")
    checkpoint = weight_file("masks.model", settings.model, "the SAM 2 checkpoint")
    beside = checkpoint.with_suffix(".yaml")
    if beside.is_file():
        # Hydra finds a config outside of the package by an absolute path behind a second slash.
        return settings.model, checkpoint, "/" + str(beside.resolve())
    if checkpoint.stem not in PUBLISHED:
        raise UserError(
            f"masks.model: no config for {checkpoint.name}: neither {beside.name} in the folder {checkpoint.parent} nor a published "
            f"name ({', '.join(sorted(PUBLISHED))}). Put the config beside the checkpoint."
        )
    return settings.model, checkpoint, PUBLISHED[checkpoint.stem]


class Sam2PackageMasker:
    """SAM 2's own image predictor."""

    def __init__(self, settings: MaskSettings, store_root: Path, offline: bool, threads: int) -> None:
        model, checkpoint, config = checkpoint_and_config(settings)
        check_sha256("masks.model", model, checkpoint, store_root)
        if find_spec("sam2") is None:
            raise UserError(
                "masks.backend: sam2-package needs the optional extra `sam2` (the package sam2). Install it, or choose sam2."
            )
        import torch
        from sam2.build_sam import build_sam2
        from sam2.sam2_image_predictor import SAM2ImagePredictor

        torch.set_num_threads(threads)
        device = device_of_job()
        try:
            built = build_sam2(config, str(checkpoint), device=device)
        except Exception as error:  # torch, yaml and hydra raise many kinds for torn or foreign files
            raise UserError(
                f"masks.model: {checkpoint.name} in the folder {checkpoint.parent} cannot be loaded with {config} ({error})."
            ) from error
        self._predictor: Any = SAM2ImagePredictor(built)
        # The predictor assumes 1024 px pictures; other sizes have other feature maps.
        self._predictor._bb_feat_sizes = [(built.image_size // stride,) * 2 for stride in STRIDES]
        self._last: NDArray[np.uint8] | None = None

    @classmethod
    def fingerprint(cls, settings: MaskSettings, store_root: Path, offline: bool) -> str:
        """The configured sha256 or revision, else the checkpoint's sha256."""
        if settings.model is not None and (settings.model.sha256 or settings.model.revision):
            return model_fingerprint(settings.model, None, store_root)
        model, checkpoint, _ = checkpoint_and_config(settings)
        return model_fingerprint(model, checkpoint, store_root)

    def mask(self, image_HWC: NDArray[np.uint8], face: Face, kind: MaskKind) -> NDArray[np.bool_]:
        """Ask for one kind; returns (H, W)."""
        import torch

        with torch.inference_mode():
            if self._last is not image_HWC:
                self._predictor.set_image(image_HWC)
                self._last = image_HWC
            prompt = prompt_for(face, kind, *image_HWC.shape[:2])
            masks, _, _ = self._predictor.predict(
                point_coords=prompt.points_P2, point_labels=prompt.labels_P, box=prompt.box_4, multimask_output=False
            )
        return np.asarray(masks[0]) > 0
