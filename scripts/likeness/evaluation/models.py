"""The learned metrics' models, each loaded at its first use; None where the settings name no weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from likeness.config.base import ModelSource
from likeness.config.evaluation import EvaluationSettings
from likeness.faces.weights import check_sha256, hub_folder, model_fingerprint, weight_file
from likeness.quality.body import LEAST_KEYPOINT_SCORE, SHOULDERS, BodyModel, Box
from likeness.store import Store, item_key

VERSION = 1
CLIP_STAGE, BODY_STAGE = "score-clip-embeddings", "score-body"
CLIP_FILES = ("config.json", "model.safetensors", "preprocessor_config.json", "tokenizer_config.json")
Image = NDArray[np.uint8]


class Models:
    """LPIPS, CLIP and body keypoints as configured; making this loads nothing but finds the files, with a UserError where one is absent."""

    def __init__(self, settings: EvaluationSettings, store: Store, offline: bool) -> None:
        self.lpips = Lpips(settings.lpips, store) if settings.lpips else None
        self.clip = Clip(settings.clip, store, offline) if settings.clip else None
        self.body = BodyPose(settings.body_pose, store, offline) if settings.body_pose else None

    @property
    def loaded(self) -> int:
        """How many models were loaded."""
        return sum("model" in vars(one) for one in (self.lpips, self.clip, self.body) if one is not None)


class Lpips:
    """LPIPS 0.1 with an AlexNet trunk from a file and the linear layers of the lpips package."""

    def __init__(self, source: ModelSource, store: Store) -> None:
        self.path = weight_file(
            "evaluation.lpips", source, "the AlexNet trunk (alexnet-owt-7be5be79.pth of torchvision)"
        )
        check_sha256("evaluation.lpips", source, self.path, store.root)
        self.fingerprint = model_fingerprint(source, self.path, store.root)

    @cached_property
    def model(self) -> Any:
        from likeness.training.losses.perceptual import read_lpips

        return read_lpips("alex", self.path, "evaluation.lpips")

    def distance(self, first_HWC: Image, second_HWC: Image) -> float:
        """Distance of two images of one size."""
        import torch

        pair = [
            torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
            for image in (first_HWC, second_HWC)
        ]
        with torch.no_grad():
            return float(self.model(*pair))


class Clip:
    """A CLIP model in transformers layout; embeddings of pictures are stored items."""

    def __init__(self, source: ModelSource, store: Store, offline: bool) -> None:
        self.store = store
        self.folder = hub_folder("evaluation.clip", source, CLIP_FILES, offline)
        self.fingerprint = model_fingerprint(source, self.folder, store.root)
        self.name = f"{Path(source.source).name}-{self.fingerprint[:12]}"
        self._texts: dict[str, NDArray[np.float64]] = {}

    @cached_property
    def model(self) -> Any:
        from transformers import CLIPModel

        return CLIPModel.from_pretrained(self.folder, local_files_only=True, use_safetensors=True).eval()

    @cached_property
    def processor(self) -> Any:
        from transformers import AutoImageProcessor, AutoTokenizer

        return (
            AutoImageProcessor.from_pretrained(self.folder, local_files_only=True),
            AutoTokenizer.from_pretrained(self.folder, local_files_only=True),
        )

    def image_embedding(self, content: str, load: Callable[[], Image]) -> NDArray[np.float64]:
        """Unit embedding of a picture."""

        def compute() -> tuple[dict[str, Any], dict[str, bytes]]:
            import torch
            from PIL import Image as Pillow

            inputs = self.processor[0](images=Pillow.fromarray(load()), return_tensors="pt")
            with torch.no_grad():
                output = self.model.get_image_features(**inputs)
            return {"embedding": _unit(_features(output))}, {}

        key = item_key(CLIP_STAGE, VERSION, None, self.fingerprint, content)
        return np.array(self.store.load_or_compute(CLIP_STAGE, key, compute).record["embedding"])

    def text_embedding(self, text: str) -> NDArray[np.float64]:
        """Unit embedding of a prompt, cut to what CLIP reads."""
        if text not in self._texts:
            import torch

            tokenizer = self.processor[1]
            length = self.model.config.text_config.max_position_embeddings
            inputs = tokenizer([text], return_tensors="pt", truncation=True, max_length=length)
            with torch.no_grad():
                output = self.model.get_text_features(**inputs)
            self._texts[text] = np.array(_unit(_features(output)))
        return self._texts[text]


def _features(output: Any) -> Any:
    """The projected features, which newer versions of the library wrap."""
    return getattr(output, "pooler_output", output)


def _unit(features: Any) -> list[float]:
    vector_D = features[0].double().numpy()
    return [float(value) for value in vector_D / np.linalg.norm(vector_D)]


class BodyPose(BodyModel):
    """Shoulders by a ViTPose model; what it finds in a picture is a stored item."""

    def __init__(self, source: ModelSource, store: Store, offline: bool) -> None:
        super().__init__("evaluation.body_pose", source, store.root, offline)
        self.store = store
        _ = self.folder  # an absent file is an error before anything is scored
        self.name = f"{Path(source.source).name}-{self.fingerprint[:12]}"

    def shoulder_width(self, content: str, load: Callable[[], Image], person_box: Box) -> float | None:
        """Distance of the shoulders in px of the picture, within a person's box; None where they are not seen."""
        key = item_key(BODY_STAGE, VERSION, [round(side, 3) for side in person_box], self.fingerprint, content)
        record = self.store.load_or_compute(BODY_STAGE, key, lambda: (self._find(load(), person_box), {})).record
        if min(record["scores"]) < LEAST_KEYPOINT_SCORE:
            return None
        (x0, y0), (x1, y1) = record["points"]
        return float(np.hypot(x1 - x0, y1 - y0)) or None

    def _find(self, image_HWC: Image, person_box: Box) -> dict[str, Any]:
        found, shoulders = self.keypoints(image_HWC, person_box), list(SHOULDERS)
        return {"points": found.points_K2[shoulders].tolist(), "scores": found.scores_K[shoulders].tolist()}
