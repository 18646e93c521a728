"""A face detector of the SCRFD shape for the drawn world, trained on one CPU thread in a fixed number of steps.

A small convolutional network with a feature pyramid (strides 8, 16, 32) and one head shared by all strides: score, box
and five landmarks. It is trained on drawn pictures of 0 to 3 people, half of them shrunk to 14..48 px and enlarged
again, because evaluation looks at samples of a tiny diffusion model.

SCRFD's conventions, which insightface decodes: input (x - 127.5) / 128, RGB; a cell at row i and column j of stride s
speaks for the point (j s, i s); boxes are distances to left, top, right, bottom and landmarks are offsets, both in
strides; two anchors a cell. Both anchors carry the same prediction here, and insightface's own suppression merges them.

Axes: B pictures, C channels, H rows, W columns, K cells of all strides, P landmarks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from likeness.miniature import degrade
from likeness.miniature.graph import ConvUnit, Graph
from likeness.miniature.world import Rendered, Scene, render, render_group, sample_identities, sample_scenes

DET_SIZE = (96, 96)
STRIDES = (8, 16, 32)
# Face heights, in px at DET_SIZE, that each stride answers for; neighbours overlap so that no size falls between.
FACE_HEIGHTS_PX = ((0.0, 33.0), (27.0, 64.0), (52.0, 1e9))
# Heat maps: five landmarks and the four sides of the box. A little mass everywhere keeps empty windows defined.
POINTS = 9
LEAST_MASS = 1e-3
PICTURE_PX = DET_SIZE[0]
# A face drawn with fewer pixels than this is a smudge: neither face nor background is asked for.
SMALLEST_FACE_PX = 3.0
BATCH = 16
STEPS = 900
PICTURES_EACH = 96
LEARNING_RATE = 4e-3


class Answer(NamedTuple):
    """Of the network, or wanted of it: scores (B, K), boxes (B, K, 4) and landmarks (B, K, 10) in strides, heat (B, C, H, W)."""

    scores: Tensor
    boxes: Tensor
    landmarks: Tensor
    heat: Tensor


class Detector(nn.Module):
    """Pyramid of three strides; forward answers with score and heat logits.

    Landmarks and the box's four sides are found as centres of mass: the finest level holds a heat map a point and a
    stride, and each cell averages positions in its window by the heat's probability. That learns positions sooner than
    plain regression, which is left to add the remainder.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.ModuleList([ConvUnit(3, 24, 7, 4), ConvUnit(24, 48, 3, 2)])
        self.deep = nn.ModuleList([ConvUnit(48, 48), ConvUnit(64, 64), ConvUnit(64, 64)])
        self.down = nn.ModuleList([ConvUnit(48, 64, 3, 2), ConvUnit(64, 64, 3, 2)])
        self.lateral = nn.ModuleList([ConvUnit(channels, width, 1) for channels in (48, 64, 64)])
        self.head = ConvUnit(width, width)
        self.heat_head = ConvUnit(width, 48)
        self.heat = nn.Conv2d(48, POINTS * len(STRIDES), 1)
        self.out = nn.Conv2d(width, 15, 1)
        with torch.no_grad():
            self.out.weight.mul_(0.1)
            assert self.out.bias is not None and self.heat.bias is not None
            self.out.bias.zero_()
            self.out.bias[0] = -3.0
            self.heat.bias.fill_(-4.0)

    def forward(self, images_BCHW: Tensor) -> Answer:
        levels = self._levels(images_BCHW)
        heat = self.heat(self.heat_head(levels[0]))
        mass = torch.sigmoid(heat) + LEAST_MASS
        outputs = []
        for i, level in enumerate(levels):
            answer = self.out(self.head(level))
            centres = centres_of_mass(mass[:, i * POINTS : (i + 1) * POINTS], STRIDES[i])
            answer = torch.cat([answer[:, :1], answer[:, 1:] + centres], 1)
            outputs.append(torch.flatten(answer, 2).transpose(1, 2))
        joined = torch.cat(outputs, 1)
        return Answer(joined[..., 0], joined[..., 1:5], joined[..., 5:15], heat)

    def _levels(self, x: Tensor) -> list[Tensor]:
        for unit in self.stem:
            x = unit(x)
        features = [x + self.deep[0](x)]
        for down, deep in zip(self.down, list(self.deep)[1:], strict=True):
            x = down(features[-1])
            features.append(x + deep(x))
        merged: list[Tensor] = []
        for lateral, feature in zip(list(self.lateral)[::-1], features[::-1], strict=True):
            level = lateral(feature)
            if merged:
                level = level + nn.functional.interpolate(merged[-1], scale_factor=2.0, mode="nearest")
            merged.append(level)
        return merged[::-1]


def window_kernels(stride: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the constant convolutions of the centres of mass at one stride.

    moments and masses (2 x POINTS, 1, k, k): x and y offsets in strides, and ones, over a window of two strides to each
    side on the finest grid. select (14, 2 x POINTS, 1, 1): box sides (left and top as distances) and landmarks.
    """
    reach = 2 * stride // STRIDES[0]
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float32) * (STRIDES[0] / stride)
    down, right = torch.meshgrid(offsets, offsets, indexing="ij")
    moments = torch.stack([right, down]).repeat(POINTS, 1, 1)[:, None]
    select = torch.zeros(14, 2 * POINTS, 1, 1)
    # Points 5..8 are the left, upper, right and lower side; of each only the coordinate across counts.
    for row, (column, sign) in enumerate([(10, -1.0), (13, -1.0), (14, 1.0), (17, 1.0)]):
        select[row, column] = sign
    for k in range(10):
        select[4 + k, k] = 1.0
    return moments, torch.ones_like(moments), select


_KERNELS = {stride: window_kernels(stride) for stride in STRIDES}


def centres_of_mass(mass: Tensor, stride: int) -> Tensor:
    """Return (B, 14, H, W): where the mass of each point lies around each cell of one stride, in strides."""
    moments, masses, select = _KERNELS[stride]
    step, half = stride // STRIDES[0], moments.shape[-1] // 2
    numerator = nn.functional.conv2d(mass, moments, stride=step, padding=half, groups=POINTS)
    denominator = nn.functional.conv2d(mass, masses, stride=step, padding=half, groups=POINTS)
    return nn.functional.conv2d(numerator / denominator, select)


@dataclass(frozen=True)
class Example:
    """A drawn picture (uint8 HxWx3) and its faces: boxes (N, 4) and landmarks (N, 5, 2) in px, share of each that is visible (N,)."""

    image: degrade.Picture
    boxes: NDArray
    landmarks: NDArray
    visible: NDArray


def empty_scenes(scene: Scene) -> Scene:
    """Return the same scenes with the person far outside of the picture: the background alone is left."""
    return scene.change(centre_x=9.0)


def group_scene(people: int, rng: np.random.Generator) -> Scene:
    """Draw a scene of several people side by side, of different sizes, before one background."""
    scene = sample_scenes(people, rng, "half" if people > 2 or rng.uniform() < 0.5 else "close")
    places = (np.arange(people) + 0.5 + rng.uniform(-0.15, 0.15, people)) / people
    smallest, largest = 0.14, 0.42 if people == 2 else 0.30
    scale = rng.uniform(smallest, largest, people)
    return scene.change(centre_x=places, centre_y=rng.uniform(0.25, 0.55, people), scale=scale)


def _visible_share(drawn: Rendered) -> NDArray:
    boxes = drawn.boxes_N4
    ovals_px = np.pi / 4 * (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return drawn.face_NHW.sum((1, 2)) / np.maximum(ovals_px, 1e-6)


def _examples(drawn: Rendered, grouped: bool) -> list[Example]:
    images, visible = degrade.to_uint8(drawn.images_NHWC), _visible_share(drawn)
    if grouped:
        return [Example(images[0], drawn.boxes_N4, drawn.landmarks_N52, visible)]
    return [
        Example(images[i], drawn.boxes_N4[i : i + 1], drawn.landmarks_N52[i : i + 1], visible[i : i + 1])
        for i in range(len(images))
    ]


def clutter(rng: np.random.Generator) -> degrade.Picture:
    """Draw a picture of nothing: ellipses and rectangles of any colour, without a face's features."""
    image = np.full((PICTURE_PX, PICTURE_PX, 3), rng.integers(0, 256, 3), np.uint8)
    for _ in range(int(rng.integers(2, 14))):
        x, y, width, height = (int(value) for value in rng.integers(4, PICTURE_PX, 4))
        colour = [int(value) for value in rng.integers(0, 256, 3)]
        if rng.uniform() < 0.5:
            cv2.ellipse(image, (x, y), (width // 3, height // 3), float(rng.uniform(0, 180)), 0, 360, colour, -1)
        else:
            cv2.rectangle(image, (x, y), (x + width // 2, y + height // 2), colour, -1)
    return image


def draw_examples(rng: np.random.Generator, each: int = PICTURES_EACH) -> list[Example]:
    """Draw the pool that training crops from: `each` pictures of every framing and of groups, half as many empty ones."""
    pool: list[Example] = []
    for framing in ("close", "half", "full"):
        for _ in range(0, each, 32):
            count = min(32, each)
            scene = sample_scenes(count, rng, framing)
            pool += _examples(render(sample_identities(count, rng), scene, PICTURE_PX, PICTURE_PX), False)
    for _ in range(each):
        people = int(rng.integers(2, 4))
        drawn = render_group(sample_identities(people, rng), group_scene(people, rng), PICTURE_PX, PICTURE_PX)
        pool += _examples(drawn, True)
    count = max(1, each // 2)
    scene = empty_scenes(sample_scenes(count, rng))
    empty = degrade.to_uint8(render(sample_identities(count, rng), scene, PICTURE_PX, PICTURE_PX).images_NHWC)
    empty = np.concatenate([empty, np.stack([clutter(rng) for _ in range(count)])])
    nobody = (np.zeros((0, 4)), np.zeros((0, 5, 2)), np.zeros(0))
    return pool + [Example(image, *nobody) for image in empty]


def vary(example: Example, rng: np.random.Generator) -> Example:
    """Cut, mirror, shrink and enlarge, and spoil a picture, its truth with it; one in four gets insightface's black padding."""
    size = PICTURE_PX
    zoom = float(np.exp(rng.uniform(np.log(0.75), np.log(1.35))))
    matrix = np.array([[zoom, 0, size / 2 * (1 - zoom)], [0, zoom, size / 2 * (1 - zoom)]])
    matrix[:, 2] += rng.uniform(-0.12, 0.12, 2) * size
    image, boxes, landmarks = example.image, example.boxes, example.landmarks
    if rng.uniform() < 0.5:
        image = image[:, ::-1]
        boxes = np.stack([size - boxes[:, 2], boxes[:, 1], size - boxes[:, 0], boxes[:, 3]], 1)
        mirrored = landmarks * np.array([-1, 1]) + np.array([size, 0])
        landmarks = mirrored[:, [1, 0, 2, 4, 3]]
    # Pixel centres lie at half pixels in the drawings and at whole ones in OpenCV.
    shifted = matrix.copy()
    shifted[:, 2] += 0.5 * zoom - 0.5
    warped = cv2.warpAffine(np.ascontiguousarray(image), shifted, (size, size), borderMode=cv2.BORDER_REPLICATE)
    image = warped.astype(np.uint8, copy=False)
    boxes = boxes * zoom + np.tile(matrix[:, 2], 2)
    landmarks = landmarks * zoom + matrix[:, 2]
    visible = example.visible
    if rng.uniform() < 0.4:
        small_px = int(rng.integers(14, 49))
        image = degrade.enlarge(degrade.spoil(degrade.shrink(image, small_px), rng), size, rng)
        smudged = (boxes[:, 3] - boxes[:, 1]) * small_px / size < SMALLEST_FACE_PX
        visible = np.where(smudged, 0.0, visible)
    if rng.uniform() < 0.25:
        image = image.copy()
        cut = int(rng.uniform(0.6, 0.95) * size)
        axis = int(rng.integers(2))
        image[(slice(cut, None), slice(None)) if axis else (slice(None), slice(cut, None))] = 0
        visible = np.where(boxes[:, 2 + axis] > cut, 0.0, visible)
    inside = np.clip(boxes, 0, size)
    kept = (inside[:, 2] - inside[:, 0]) * (inside[:, 3] - inside[:, 1])
    kept = kept / np.maximum((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), 1e-6)
    return Example(image, inside, landmarks, visible * kept)


def cell_points() -> tuple[NDArray, NDArray, NDArray]:
    """Return the points (K, 2) px, the strides (K,) and the level (K,) of all cells at DET_SIZE, in the network's order."""
    points, strides, levels = [], [], []
    for level, stride in enumerate(STRIDES):
        side = PICTURE_PX // stride
        rows, columns = np.mgrid[:side, :side]
        points.append(np.stack([columns.ravel(), rows.ravel()], 1) * stride)
        strides.append(np.full(side * side, stride))
        levels.append(np.full(side * side, level))
    return np.concatenate(points).astype(np.float32), np.concatenate(strides).astype(np.float32), np.concatenate(levels)


_POINTS, _CELL_STRIDES, _LEVELS = cell_points()


def assign(example: Example) -> tuple[NDArray, NDArray]:
    """Say for each cell what it should answer: (wanted (K,): 1 face, 0 none, -1 not asked; index (K,) of its face or -1).

    Cells near the middle of a face answer for it, on the strides of its size; cells around them are not asked, nor is any
    cell of a face that is mostly hidden, cut off or smudged.
    """
    wanted, index = np.zeros(len(_POINTS), np.float32), np.full(len(_POINTS), -1)
    order = np.argsort(-(example.boxes[:, 3] - example.boxes[:, 1])) if len(example.boxes) else []
    for face in order:
        left, top, right, bottom = example.boxes[face]
        width, height = right - left, bottom - top
        if width < 1 or height < 1:
            continue
        centre = np.array([left + right, top + bottom]) / 2
        away = np.hypot(*((_POINTS - centre) / (np.array([width, height]) / 2)).T)
        if example.visible[face] < 0.55:
            wanted[(away < 0.9) & (wanted == 0)] = -1
            continue
        for level, (low, high) in enumerate(FACE_HEIGHTS_PX):
            here = level == _LEVELS
            if not low <= height < high:
                continue
            wanted[here & (away < 0.9) & (wanted == 0)] = -1
            near = here & (away <= max(0.45, float(away[here].min())))
            wanted[near], index[near] = 1, face
    return wanted, index


def _heat(example: Example) -> NDArray:
    """Return (C, H, W): each visible face's points, spread over the four nearest cells so that their mean is exact."""
    side = PICTURE_PX // STRIDES[0]
    heat = np.zeros((len(STRIDES), POINTS, side + 1, side + 1), np.float32)
    for face in np.flatnonzero(example.visible >= 0.55):
        left, top, right, bottom = example.boxes[face]
        sides = [
            [left, (top + bottom) / 2],
            [(left + right) / 2, top],
            [right, (top + bottom) / 2],
            [(left + right) / 2, bottom],
        ]
        places = np.clip(np.concatenate([example.landmarks[face], sides]) / STRIDES[0], 0, side - 1)
        cells = places.astype(int)
        share = places - cells
        for level, (low, high) in enumerate(FACE_HEIGHTS_PX):
            if not low <= bottom - top < high:
                continue
            for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
                weight = np.abs(1 - dx - share[:, 0]) * np.abs(1 - dy - share[:, 1])
                here = heat[level, np.arange(POINTS), cells[:, 1] + dy, cells[:, 0] + dx]
                heat[level, np.arange(POINTS), cells[:, 1] + dy, cells[:, 0] + dx] = np.maximum(here, weight)
    return heat[:, :, :side, :side].reshape(-1, side, side)


def _targets(batch: list[Example]) -> Answer:
    """Return what the network should answer; scores are 1, 0, or -1 where nothing is asked."""
    wanted = np.zeros((len(batch), len(_POINTS)), np.float32)
    boxes = np.ones((len(batch), len(_POINTS), 4), np.float32)
    landmarks = np.zeros((len(batch), len(_POINTS), 10), np.float32)
    for b, example in enumerate(batch):
        wanted[b], index = assign(example)
        cells = np.flatnonzero(wanted[b] == 1)
        points, strides = _POINTS[cells], _CELL_STRIDES[cells, None]
        box = example.boxes[index[cells]]
        boxes[b, cells] = np.concatenate([points - box[:, :2], box[:, 2:] - points], 1) / strides
        offsets = example.landmarks[index[cells]] - points[:, None]
        landmarks[b, cells] = offsets.reshape(-1, 10) / strides
    heat = np.stack([_heat(example) for example in batch])
    return Answer(*(torch.from_numpy(values) for values in (wanted, boxes, landmarks, heat)))


def detection_loss(predicted: Answer, targets: Answer) -> Tensor:
    """Focal loss of the scores, IoU loss of the boxes, smooth L1 of the landmarks over the face's size."""
    logits, boxes, landmarks, heat_logits = predicted
    wanted, true_boxes, true_landmarks, true_heat = targets
    positive, asked = wanted == 1, wanted >= 0
    faces = positive.sum().clamp(min=1)
    probability = torch.sigmoid(logits)
    error = torch.where(positive, 1 - probability, probability)
    cross = nn.functional.binary_cross_entropy_with_logits(logits, wanted.clamp(min=0), reduction="none")
    score = ((error**2) * cross * asked).sum() / faces
    mine, true = boxes[positive], true_boxes[positive]
    overlap = torch.minimum(mine, true).clamp(min=0)
    inter = (overlap[:, 0] + overlap[:, 2]) * (overlap[:, 1] + overlap[:, 3])
    area_mine = ((mine[:, 0] + mine[:, 2]) * (mine[:, 1] + mine[:, 3])).clamp(min=0)
    area_true = (true[:, 0] + true[:, 2]) * (true[:, 1] + true[:, 3])
    iou = inter / (area_mine + area_true - inter).clamp(min=1e-6)
    size = torch.sqrt(area_true.clamp(min=1e-3))[:, None]
    drift = nn.functional.smooth_l1_loss(mine / size, true / size, beta=0.05)
    points = nn.functional.smooth_l1_loss(landmarks[positive] / size, true_landmarks[positive] / size, beta=0.02)
    cross = nn.functional.binary_cross_entropy_with_logits(heat_logits, true_heat, reduction="sum")
    return score + (1 - iou).mean() + 2 * drift + 8 * points + 0.3 * cross / true_heat.sum().clamp(min=1)


def normalised(images: list[degrade.Picture]) -> Tensor:
    """Return (B, 3, H, W) as insightface feeds its detectors."""
    stacked = np.stack(images).transpose(0, 3, 1, 2).astype(np.float32)
    return torch.from_numpy((stacked - 127.5) / 128)


def _spoilt(images_BCHW: Tensor, rng: np.random.Generator) -> Tensor:
    """Change gain and offset of each picture and channel, and add noise to half of the pictures."""
    count = len(images_BCHW)
    gain = rng.uniform(0.85, 1.15, (count, 1, 1, 1)) * rng.uniform(0.95, 1.05, (count, 3, 1, 1))
    offset = rng.uniform(-0.1, 0.1, (count, 1, 1, 1))
    noise = np.clip(rng.uniform(-0.08, 0.08, (count, 1, 1, 1)), 0, None)
    gain, offset, noise = (torch.from_numpy(values.astype(np.float32)) for values in (gain, offset, noise))
    grain = torch.from_numpy(rng.standard_normal(images_BCHW.shape, dtype=np.float32))
    return (images_BCHW * gain + offset + noise * grain).clamp(-1, 1)


def _batches(pool: list[Example], rng: np.random.Generator, steps: int) -> Iterator[list[Example]]:
    for _ in range(steps):
        yield [vary(pool[k], rng) for k in rng.integers(len(pool), size=BATCH)]


def train_detector(seed: int, steps: int = STEPS, each: int = PICTURES_EACH) -> Detector:
    """Train from scratch on drawn pictures; the caller fixes the thread count, which the result depends on."""
    rng = np.random.default_rng([seed, 1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Detector()
    if steps == 0:
        return model.eval()
    pool = draw_examples(rng, each)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.15)
    model.train()
    for batch in _batches(pool, rng, steps):
        images = _spoilt(normalised([example.image for example in batch]), rng)
        loss = detection_loss(model(images), _targets(batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def save_detector(model: Detector, file: Path) -> Path:
    """Write the network as an SCRFD-shaped ONNX file: input 1x3xHxW of any multiple of 32, nine outputs."""
    graph = Graph()
    x = "input.1"
    for i, unit in enumerate(model.stem):
        x = graph.unit(x, unit, f"stem{i}")  # type: ignore[arg-type]
    features = [graph.node("Add", [x, graph.unit(x, model.deep[0], "deep0")], "feature0")]  # type: ignore[arg-type]
    for i in (1, 2):
        x = graph.unit(features[-1], model.down[i - 1], f"down{i}")  # type: ignore[arg-type]
        features.append(graph.node("Add", [x, graph.unit(x, model.deep[i], f"deep{i}")], f"feature{i}"))  # type: ignore[arg-type]
    scales = graph.constant("twice", np.array([1, 1, 2, 2], np.float32))
    levels: list[str] = []
    for i in (2, 1, 0):
        level = graph.unit(features[i], model.lateral[i], f"lateral{i}")  # type: ignore[arg-type]
        if levels:
            nearest = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
            inputs = [levels[-1], graph.constant(f"roi{i}", np.zeros(0, np.float32)), scales]
            level = graph.node("Add", [level, graph.node("Resize", inputs, f"up{i}", **nearest)], f"merged{i}")
        levels.append(level)
    assert model.heat.bias is not None
    heat_head = graph.unit(levels[-1], model.heat_head, "heat_head")
    outputs: dict[str, dict[str, list[int | str]]] = {"score": {}, "bbox": {}, "kps": {}}
    for i, (level, stride) in enumerate(zip(levels[::-1], STRIDES, strict=True)):
        part = slice(i * POINTS, (i + 1) * POINTS)
        heat = graph.convolution(
            heat_head, model.heat.weight[part].detach(), model.heat.bias[part].detach(), f"heat{stride}"
        )
        centres = _save_centres(graph, heat, stride)
        for name, shape in _save_head(graph, model, level, centres, stride).items():
            outputs[name.split("_")[0]][name] = shape
    ordered = outputs["score"] | outputs["bbox"] | outputs["kps"]
    return graph.save(file, "miniature_scrfd", [1, 3, "height", "width"], ordered)


def _save_centres(graph: Graph, heat: str, stride: int) -> str:
    """Write the centres of mass of one stride; the counterpart of `centres_of_mass`."""
    moments, masses, select = _KERNELS[stride]
    kernel, step = moments.shape[-1], stride // STRIDES[0]
    least = graph.constant(f"least{stride}", np.array([LEAST_MASS], np.float32))
    mass = graph.node("Add", [graph.node("Sigmoid", [heat], f"probability{stride}"), least], f"mass{stride}")
    window = {"kernel_shape": [kernel] * 2, "pads": [kernel // 2] * 4, "strides": [step] * 2, "group": POINTS}
    sums = []
    for name, weight in (("moments", moments), ("masses", masses)):
        constant = graph.constant(f"{name}{stride}.w", weight.numpy())
        sums.append(graph.node("Conv", [mass, constant], f"{name}{stride}", **window))
    mean = graph.node("Div", sums, f"mean{stride}")
    constant = graph.constant(f"select{stride}.w", select.numpy())
    return graph.node("Conv", [mean, constant], f"centres{stride}", kernel_shape=[1, 1])


def _save_head(graph: Graph, model: Detector, level: str, centres: str, stride: int) -> dict[str, list[int | str]]:
    """Write the shared head for one stride; returns its outputs and their shapes."""
    x = graph.unit(level, model.head, f"head{stride}")
    assert model.out.bias is not None
    weight, bias = model.out.weight.detach(), model.out.bias.detach()
    shapes: dict[str, list[int | str]] = {}
    for name, part in (("score", slice(0, 1)), ("bbox", slice(1, 5)), ("kps", slice(5, 15))):
        count = part.stop - part.start
        y = graph.convolution(x, weight[part], bias[part], f"{name}{stride}.one")
        if name == "score":
            y = graph.node("Sigmoid", [y], f"{name}{stride}.probability")
        else:
            rows = graph.constant(f"{name}{stride}.rows", np.arange(part.start - 1, part.stop - 1, dtype=np.int64))
            y = graph.node(
                "Add",
                [y, graph.node("Gather", [centres, rows], f"{name}{stride}.centres", axis=1)],
                f"{name}{stride}.sum",
            )
        both = graph.node("Concat", [y, y], f"{name}{stride}.anchors", axis=1)
        last = graph.node("Transpose", [both], f"{name}{stride}.last", perm=[0, 2, 3, 1])
        shape = graph.constant(f"{name}{stride}.shape", np.array([-1, count], np.int64))
        result = graph.node("Reshape", [last, shape], f"{name}_{stride}")
        shapes[result] = [f"cells{stride}", count]
    return shapes
