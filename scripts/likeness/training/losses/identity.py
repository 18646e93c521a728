"""The identity loss: one minus the cosine between the face of the implied image and the subject's.

The implied image x̂0 is decoded around the face only, warped to the recogniser's template by the photo's own landmarks
(so nothing has to be found on a blurred image, and the warp has a gradient), and embedded by the recogniser, turned
from ONNX into torch. After WithAnyone (arXiv:2510.14975), which aligns with the true photo's landmarks; the gates by
noise level and similarity are those of ai-toolkit's perceptual fork.

Axes: B samples, C channels, H and W of tokens or pixels, D embedding width.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import grid_sample, normalize
from torch.utils.checkpoint import checkpoint

from likeness.config.losses import IdentitySettings
from likeness.errors import UserError
from likeness.klein.family import token_px
from likeness.klein.latents import denormalise, unpack, unpatchify
from likeness.training.data import TrainingData
from likeness.training.losses.objective import Seen
from likeness.training.views import sample_of

MARGIN_TOKENS = 2
"""Tokens decoded around the face: what the decoder's convolutions see beyond the pixels that are read."""

logger = logging.getLogger(__name__)


class Recogniser(NamedTuple):
    """A frozen recogniser in torch: the side of its crops in px, and how it wants RGB values of 0..255."""

    network: torch.nn.Module
    side_px: int
    mean: float
    deviation: float

    def embed(self, crops_BCHW: torch.Tensor) -> torch.Tensor:
        """Unit-length embeddings_BD of aligned crops, values 0..255, RGB."""
        return normalize(self.network((crops_BCHW - self.mean) / self.deviation).flatten(1), dim=1)


def read_recogniser(path: Path, device: torch.device) -> Recogniser:
    """Turn an ArcFace-shaped ONNX file into torch, float32; what it wants is read as insightface reads it."""
    import onnx
    from insightface.model_zoo.arcface_onnx import ArcFaceONNX
    from onnx2torch import convert

    if not path.is_file():
        raise UserError(
            f"training.losses.identity.model: {path} is no file. Give the ONNX file of a face recogniser, such as "
            "w600k_r50.onnx of insightface's buffalo_l (its weights are for non-commercial research)."
        )
    wants = ArcFaceONNX(model_file=str(path))
    network = convert(onnx.load(str(path))).eval().requires_grad_(False).to(device)
    return Recogniser(network, int(wants.input_size[0]), float(wants.input_mean), float(wants.input_std))


class Face(NamedTuple):
    """Where a sample's face lies: tokens (top, bottom, left, right) to decode, and the map from crop px to that region."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    to_region_23: torch.Tensor


def locate(landmarks_52: np.ndarray, grid: tuple[int, int], side_px: int, step_px: int) -> Face:
    """The region of tokens that an aligned crop needs, and where each of the crop's pixels lies in it."""
    from insightface.utils.face_align import estimate_norm

    to_crop_33 = np.vstack([estimate_norm(landmarks_52.astype(np.float32), side_px), [0, 0, 1]])
    to_image_33 = np.linalg.inv(to_crop_33)
    corners = np.array([[0, 0, 1], [side_px, 0, 1], [0, side_px, 1], [side_px, side_px, 1]]).T
    columns_px, rows_px = (to_image_33 @ corners)[:2]
    rows, columns = (span(values_px, step_px, size) for values_px, size in ((rows_px, grid[0]), (columns_px, grid[1])))
    to_image_33[0, 2] -= columns[0] * step_px
    to_image_33[1, 2] -= rows[0] * step_px
    return Face(rows, columns, torch.from_numpy(to_image_33[:2].astype(np.float32)))


def span(values_px: np.ndarray, step_px: int, size: int) -> tuple[int, int]:
    """First and last token (exclusive) that cover these pixels with the margin, inside of the picture."""
    first = max(0, math.floor(values_px.min() / step_px) - MARGIN_TOKENS)
    last = min(size, math.ceil(values_px.max() / step_px) + MARGIN_TOKENS)
    return (first, last) if first < last else (0, size)


def align(image_CHW: torch.Tensor, to_image_23: torch.Tensor, side_px: int) -> torch.Tensor:
    """Sample an aligned crop_CHW bilinearly, 0 beyond the border; must agree with cv2.warpAffine of insightface."""
    height, width = image_CHW.shape[-2:]
    places = torch.arange(side_px, dtype=image_CHW.dtype, device=image_CHW.device)
    v_HW, u_HW = torch.meshgrid(places, places, indexing="ij")
    points_HW3 = torch.stack([u_HW, v_HW, torch.ones_like(u_HW)], dim=-1)
    xy_HW2 = points_HW3 @ to_image_23.to(image_CHW).T
    size = torch.tensor([width, height], dtype=image_CHW.dtype, device=image_CHW.device)
    grid_HW2 = (2.0 * xy_HW2 + 1.0) / size - 1.0
    return grid_sample(image_CHW[None], grid_HW2[None], "bilinear", "zeros", align_corners=False)[0]


@dataclass
class IdentityLoss:
    """One minus the cosine to the target; 0 for samples without a face or with one that is none yet."""

    settings: IdentitySettings
    vae: Any
    recogniser: Recogniser
    faces: Mapping[str, Face]
    targets: Mapping[str, torch.Tensor]

    def __call__(self, seen: Seen) -> torch.Tensor:
        height, width = grid_of(seen)
        clean_BCHW = unpack(seen.clean_BLC, height, width)
        nothing = torch.zeros((), device=clean_BCHW.device)
        values = []
        for sample_id, clean_CHW in zip(seen.batch.sample_ids, clean_BCHW, strict=True):
            if sample_id not in self.faces:
                values.append(nothing)
                continue
            found_D = embed_face(self.vae, self.recogniser, clean_CHW, self.faces[sample_id])
            cosine = found_D @ self.targets[sample_id]
            values.append(torch.where(cosine.detach() >= self.settings.min_similarity, 1.0 - cosine, nothing))
        return torch.stack(values)


def grid_of(seen: Seen) -> tuple[int, int]:
    """Height and width in tokens of the micro-batch's targets, from their position ids."""
    last = seen.batch.target_ids.max(dim=0).values
    return int(last[1]) + 1, int(last[2]) + 1


def embed_face(vae: Any, recogniser: Recogniser, clean_CHW: torch.Tensor, face: Face) -> torch.Tensor:
    """Embedding_D of the face in clean latents, with gradient; the decoding is computed again in the backward pass."""
    region_CHW = clean_CHW[:, face.rows[0] : face.rows[1], face.columns[0] : face.columns[1]]
    image_CHW = checkpoint(decode, vae, region_CHW, use_reentrant=False)
    assert isinstance(image_CHW, torch.Tensor)
    crop_CHW = align((image_CHW + 1.0) * 127.5, face.to_region_23, recogniser.side_px)
    return recogniser.embed(crop_CHW[None])[0]


def decode(vae: Any, latents_CHW: torch.Tensor) -> torch.Tensor:
    """Decode normalised latents to an image_CHW of about -1..1, clamped, in float32, with gradient."""
    raw_BCHW = unpatchify(denormalise(vae, latents_CHW[None].to(vae.dtype)))
    return vae.decode(raw_BCHW, return_dict=False)[0][0].float().clamp(-1.0, 1.0)


def make_identity_loss(settings: IdentitySettings, data: TrainingData, vae: Any) -> IdentityLoss:
    """Locate every sample's face and embed it as the VAE shows it; UserError where there is none at all."""
    recogniser = read_recogniser(Path(settings.model.source).expanduser(), data.device)
    step_px = token_px(dict(vae.config))
    faces, own = {}, {}
    for sample_id, sample in sorted(data.views.items()):
        if sample.landmarks_52 is None:
            continue
        grid = sample.group[0]
        face = locate(sample.landmarks_52, grid, recogniser.side_px, step_px)
        faces[sample_id] = face
        with torch.no_grad():
            clean_CHW = unpack(sample.latents_LC[None].to(data.device), *grid)[0]
            own[sample_id] = embed_face(vae, recogniser, clean_CHW, face)
    if not faces:
        raise UserError(
            "training.losses.identity: no sample has a face with landmarks. Use a face detector that gives landmarks, or "
            "switch the loss off."
        )
    subjects = [name for name, one in data.samples.items() if not one.of_class]
    lacking = sum(name not in faces for name in subjects)
    if lacking:
        logger.warning("%d of %d samples have no face for the identity loss", lacking, len(subjects))
    return IdentityLoss(settings, vae, recogniser, faces, targets_of(own, settings.target))


def targets_of(own: Mapping[str, torch.Tensor], target: str) -> dict[str, torch.Tensor]:
    """The embedding that each view is drawn to: its own, or the mean of all other photos' (its own where there is one face)."""
    plain = {name: one_D for name, one_D in own.items() if name == sample_of(name)}
    if target == "own" or len(plain) == 1:
        return dict(own)
    total_D = torch.stack(list(plain.values())).sum(dim=0)
    return {name: normalize(total_D - plain[sample_of(name)], dim=0) for name in own}
