"""Face recognisers of the ArcFace shape for the drawn world: one for curation, one of another make for evaluation.

Both see 112 px crops aligned by insightface's template and learn by contrast: four pictures of each of many people, some
rendered at 14..28 px and enlarged, must lie closer to one another than to everybody else's (supervised InfoNCE). They
average the crop to a few dozen pixels first, since the drawn world has no finer identity than that and small samples
have less. The evaluation's recogniser differs in seed, resolution, depth, activation and embedding width, so that a
score is never measured with the network that a curation or an identity loss has used.

insightface feeds (x - 127.5) / 127.5, RGB. Axes: B crops, C channels, H rows, W columns, D embedding dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from likeness.miniature import degrade
from likeness.miniature.graph import ConvUnit, Graph
from likeness.miniature.world import render, sample_identities, sample_scenes

CROP_PX = 112
# Where the five landmarks lie in an aligned crop; must agree with insightface.utils.face_align.arcface_dst.
TEMPLATE_52 = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]], np.float32
)
RENDER_PX = 56
ENLARGED_PX = 160
VIEWS = 4
LEARNING_RATE = 3e-3
TEMPERATURE = 0.1
# Standard deviations, in eye distances, of what the detector is off by in photos and in small samples.
LANDMARK_JITTER, LANDMARK_JITTER_SMALL = 0.055, 0.08


@dataclass(frozen=True)
class Design:
    """What makes a recogniser: inner resolution (112 / `shrink`), (channels, stride) of each unit, embedding width."""

    shrink: int
    units: tuple[tuple[int, int], ...]
    width: int
    leak: float
    seed_offset: int
    people: int = 700
    people_per_step: int = 40
    steps: int = 180


CURATION = Design(shrink=4, units=((24, 2), (48, 2), (64, 1)), width=64, leak=0.0, seed_offset=11)
EVALUATION = Design(shrink=7, units=((32, 1), (48, 2), (64, 1), (64, 2)), width=96, leak=0.1, seed_offset=23)


class Recogniser(nn.Module):
    """Average, convolve, flatten, project: (B, 3, 112, 112) to an embedding (B, D) that is not normalised."""

    def __init__(self, design: Design) -> None:
        super().__init__()
        self.design = design
        self.pool = nn.AvgPool2d(design.shrink)
        units, channels, side = [], 3, CROP_PX // design.shrink
        for outputs, stride in design.units:
            units.append(ConvUnit(channels, outputs, 3, stride, design.leak))
            channels, side = outputs, -(-side // stride)
        self.units = nn.ModuleList(units)
        self.project = nn.Linear(channels * side * side, design.width)

    def forward(self, crops_BCHW: Tensor) -> Tensor:
        """Embed aligned crops, (x - 127.5) / 127.5."""
        return self.embed_pooled(self.pool(crops_BCHW))

    def embed_pooled(self, x: Tensor) -> Tensor:
        """Embed crops that are already averaged to the inner resolution."""
        for unit in self.units:
            x = unit(x)
        return self.project(torch.flatten(x, 1))


def similarity_to_template(landmarks_52: NDArray) -> NDArray:
    """Return the 2x3 similarity (least squares, no mirroring) that brings five landmarks to the template; Umeyama 1991."""
    source_mean, target_mean = landmarks_52.mean(0), TEMPLATE_52.mean(0)
    source, target = landmarks_52 - source_mean, TEMPLATE_52 - target_mean
    # In two dimensions the best rotation and scale are one complex number.
    numerator = (source * target).sum() + 1j * (source[:, 0] * target[:, 1] - source[:, 1] * target[:, 0]).sum()
    turn = numerator / np.maximum((source**2).sum(), 1e-9)
    matrix = np.array([[turn.real, -turn.imag], [turn.imag, turn.real]])
    return np.concatenate([matrix, (target_mean - matrix @ source_mean)[:, None]], 1)


def _crop(image: degrade.Picture, landmarks: NDArray, rng: np.random.Generator, jitter: float) -> degrade.Picture:
    """Align a picture by landmarks that are off by `jitter` eye distances (standard deviation)."""
    eyes_px = float(np.hypot(*(landmarks[1] - landmarks[0])))
    width_px = max(eyes_px, 0.6 * float(np.hypot(*(landmarks[4] - landmarks[0]))))
    guessed = landmarks + rng.normal(0, jitter * width_px, (5, 2)) + rng.normal(0, jitter * width_px, 2)
    matrix = similarity_to_template(guessed - 0.5)
    return cv2.warpAffine(image, matrix, (CROP_PX, CROP_PX), borderValue=0.0).astype(np.uint8, copy=False)


def _view(image: degrade.Picture, landmarks: NDArray, rng: np.random.Generator, small: bool) -> degrade.Picture:
    """Turn one drawing into the crop that a photo or an enlarged sample of it would give."""
    image = degrade.spoil(image, rng, noise=0.04, tint=0.06)
    enlarged = degrade.enlarge(image, ENLARGED_PX, rng)
    scaled = landmarks * (ENLARGED_PX / image.shape[0])
    return _crop(enlarged, scaled, rng, LANDMARK_JITTER_SMALL if small else LANDMARK_JITTER)


def draw_crops(people: int, rng: np.random.Generator, shrink: int) -> Tensor:
    """Draw people's aligned crops, averaged: (people, VIEWS, 3, H, W) in -1..1; the second half of the views are small ones."""
    identities = sample_identities(people, rng)
    crops: list[list[degrade.Picture]] = [[] for _ in range(people)]
    for view in range(VIEWS):
        small = view >= VIEWS // 2
        for start in range(0, people, 40):
            chosen = slice(start, min(start + 40, people))
            count = chosen.stop - chosen.start
            scene = sample_scenes(count, rng)
            # Small samples show faces of any framing that still leaves a few pixels of face.
            scale = rng.uniform(0.34, 0.66, count) if small else rng.uniform(0.42, 0.66, count)
            height_px = int(rng.choice([14, 16, 16, 20, 24, 24, 28])) if small else RENDER_PX
            scene = scene.change(scale=scale, centre_x=rng.uniform(0.42, 0.58, count))
            drawn = render(identities[chosen], scene, height_px, height_px)
            images = degrade.to_uint8(drawn.images_NHWC)
            for k in range(count):
                crops[start + k].append(_view(images[k], drawn.landmarks_N52[k], rng, small))
    stacked = np.array(crops, dtype=np.uint8).transpose(0, 1, 4, 2, 3)
    side = CROP_PX // shrink
    averaged = stacked.reshape(people, VIEWS, 3, side, shrink, side, shrink).mean((4, 6), dtype=np.float32)
    return torch.from_numpy((averaged - 127.5) / 127.5)


def contrast_loss(embeddings: Tensor) -> Tensor:
    """Supervised InfoNCE over (people, views, D): each view must pick its person's other views among all (Khosla et al. 2020)."""
    people, views, _ = embeddings.shape
    flat = nn.functional.normalize(embeddings.flatten(0, 1), dim=1)
    logits = flat @ flat.T / TEMPERATURE
    itself = torch.eye(people * views, dtype=torch.bool)
    owner = torch.arange(people).repeat_interleave(views)
    same = (owner[:, None] == owner[None]) & ~itself
    log_share = logits - torch.logsumexp(logits.masked_fill(itself, -1e9), 1, keepdim=True)
    return -(log_share * same).sum() / same.sum()


def train_recogniser(design: Design, seed: int, steps: int | None = None, people: int | None = None) -> Recogniser:
    """Train from scratch on drawn people; the caller fixes the thread count, which the result depends on."""
    steps = design.steps if steps is None else steps
    people = design.people if people is None else people
    rng = np.random.default_rng([seed, design.seed_offset])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed * 1000 + design.seed_offset)
        model = Recogniser(design)
    if steps == 0:
        return model.eval()
    crops = draw_crops(people, rng, design.shrink)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.15)
    model.train()
    for _ in range(steps):
        chosen = torch.from_numpy(rng.choice(people, size=min(design.people_per_step, people), replace=False))
        batch = crops[chosen]
        if rng.uniform() < 0.5:
            batch = batch.flip(-1)
        batch = batch + 0.03 * torch.from_numpy(rng.standard_normal(batch.shape, dtype=np.float32))
        embeddings = model.embed_pooled(batch.flatten(0, 1)).unflatten(0, batch.shape[:2])
        loss = contrast_loss(embeddings)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def save_recogniser(model: Recogniser, file: Path) -> Path:
    """Write the network as an ArcFace-shaped ONNX file: input Nx3x112x112, one output NxD.

    No node is named Sub or Mul: insightface would then believe that the file normalises its input by itself.
    """
    design, graph = model.design, Graph()
    x = graph.node("AveragePool", ["input.1"], "pool", kernel_shape=[design.shrink] * 2, strides=[design.shrink] * 2)
    for i, unit in enumerate(model.units):
        x = graph.unit(x, unit, f"unit{i}")  # type: ignore[arg-type]
    x = graph.node("Flatten", [x], "flat", axis=1)
    weight = graph.constant("project.w", model.project.weight.detach().numpy())
    bias = graph.constant("project.b", model.project.bias.detach().numpy())
    result = graph.node("Gemm", [x, weight, bias], "embedding", transB=1)
    return graph.save(file, "miniature_arcface", ["batch", 3, CROP_PX, CROP_PX], {result: ["batch", design.width]})
