"""A face detector of the SCRFD shape for the drawn world, trained on one CPU thread in a fixed number of steps.

One small convolutional network looks at the picture at three scales: as it is, halved, and halved again, which gives the
strides 8, 16 and 32 of SCRFD. All weights are shared, so a face means the same at every scale and training needs only
small windows with faces of one range of sizes: a window costs a fifth of a whole picture, and each cell sees all of its
face, without which the landmarks of turned heads are not learned. Half of the windows come from pictures shrunk to
14..48 px and enlarged again, because evaluation looks at samples of a tiny diffusion model.

SCRFD's conventions, which insightface decodes: input (x - 127.5) / 128, RGB; a cell at row i and column j of stride s
speaks for the point (j s, i s); boxes are distances to left, top, right, bottom and landmarks are offsets, both in
strides; two anchors a cell. Both anchors carry the same prediction here, and insightface's own suppression merges them.

Axes: B pictures or windows, C channels, H rows, W columns, K cells, P landmarks.
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
PICTURE_PX = DET_SIZE[0]
# The network's own stride, and the side of the windows it is trained on.
STRIDE, WINDOW_PX = STRIDES[0], PICTURE_PX // 2
# Heights of faces, px at the scale at which the network looks, that it must find; up to the outer ones it may.
FACE_HEIGHTS_PX, ALLOWED_HEIGHTS_PX = (8.0, 36.0), (6.5, 44.0)
# A face of half the size is right at the next finer scale too, and better placed there: it is to score higher.
SURE_HEIGHT_PX, LEAST_SCORE = 16.0, 0.8
# A second face in a portrait costs a photo; a lower score of a true face costs nothing.
FALSE_ALARM_WEIGHT = 3.0
# A face drawn with fewer pixels than this is a smudge: neither face nor background is asked for.
SMALLEST_FACE_PX = 3.0
BATCH = 32
STEPS = 900
PICTURES_EACH = 320
LEARNING_RATE = 4e-3


class Answer(NamedTuple):
    """Of the network, or wanted of it: scores (B, K), boxes (B, K, 4) and landmarks (B, K, 10) in strides."""

    scores: Tensor
    boxes: Tensor
    landmarks: Tensor


class Detector(nn.Module):
    """The shared network; `forward` answers at one scale, `pyramid` at all three, with score logits."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [(3, 16, 3, 2), (16, 32, 3, 2), (32, 48, 3, 1), (48, 64, 3, 2), (64, 96, 5, 1), (96, 96, 1, 1)]
        self.units = nn.ModuleList([ConvUnit(*size) for size in sizes])
        self.out = nn.Conv2d(96, 15, 1)
        with torch.no_grad():
            self.out.weight.mul_(0.1)
            assert self.out.bias is not None
            self.out.bias.zero_()
            self.out.bias[0] = -3.0

    def forward(self, images_BCHW: Tensor) -> Answer:
        """Look at one scale, whose cells are 8 px apart."""
        x = images_BCHW
        for unit in self.units:
            x = unit(x)
        cells = torch.flatten(self.out(x), 2).transpose(1, 2)
        return Answer(cells[..., 0], cells[..., 1:5], cells[..., 5:15])

    def pyramid(self, images_BCHW: Tensor) -> Answer:
        """Look at the three scales; the cells of stride 8 come first."""
        answers = []
        for stride in STRIDES:
            factor = stride // STRIDE
            answers.append(self(nn.functional.avg_pool2d(images_BCHW, factor) if factor > 1 else images_BCHW))
        return Answer(*(torch.cat(parts, 1) for parts in zip(*answers, strict=True)))


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
    """Draw the pool that training cuts from: `each` pictures of every framing, half as many groups and empty ones."""
    pool: list[Example] = []
    # A near face is looked at in a halved picture.
    for framing, side_px in (("close", PICTURE_PX * 2 // 3), ("half", PICTURE_PX), ("full", PICTURE_PX)):
        for start in range(0, each, 32):
            count = min(32, each - start)
            scene = sample_scenes(count, rng, framing)
            pool += _examples(render(sample_identities(count, rng), scene, side_px, side_px), False)
    for _ in range(-(-each // 2)):
        people = int(rng.integers(2, 4))
        drawn = render_group(sample_identities(people, rng), group_scene(people, rng), PICTURE_PX, PICTURE_PX)
        pool += _examples(drawn, True)
    count = -(-each // 4)
    scene = empty_scenes(sample_scenes(count, rng))
    empty = degrade.to_uint8(render(sample_identities(count, rng), scene, PICTURE_PX, PICTURE_PX).images_NHWC)
    empty = np.concatenate([empty, np.stack([clutter(rng) for _ in range(count)])])
    nobody = (np.zeros((0, 4)), np.zeros((0, 5, 2)), np.zeros(0))
    return pool + [Example(image, *nobody) for image in empty]


def _mirrored(example: Example) -> Example:
    width = example.image.shape[1]
    boxes = example.boxes.copy()
    boxes[:, [0, 2]] = width - example.boxes[:, [2, 0]]
    landmarks = (example.landmarks * np.array([-1, 1]) + np.array([width, 0]))[:, [1, 0, 2, 4, 3]]
    return Example(np.ascontiguousarray(example.image[:, ::-1]), boxes, landmarks, example.visible)


def _corner(span: NDArray, side_px: int, rng: np.random.Generator) -> int:
    """Choose where a window starts along one axis: within the picture, and holding the span (start, end) mostly whole."""
    low, high = span[1] - WINDOW_PX - 3, span[0] + 3
    wanted = rng.uniform(min(low, high), max(low, high))
    return int(np.clip(round(wanted), 0, max(0, side_px - WINDOW_PX)))


def vary(example: Example, rng: np.random.Generator) -> Example:
    """Mirror, shrink and enlarge a picture, bring it to a size at which it is looked at, and cut a window, its truth with it."""
    if rng.uniform() < 0.5:
        example = _mirrored(example)
    image, visible = example.image, example.visible
    drawn_px = image.shape[0]
    heights = (example.boxes[:, 3] - example.boxes[:, 1]) / drawn_px
    face = int(rng.integers(len(heights))) if len(heights) else -1
    # As the picture is, or halved. A large face suits the halved one; what is no face is learned inside of the whole one.
    large = face >= 0 and heights[face] * PICTURE_PX > rng.uniform(24, 34)
    whole = rng.uniform() < (0.5 if large else 0.8)
    side_px = round((PICTURE_PX if whole else PICTURE_PX // 2) * float(np.exp(rng.uniform(-0.3, 0.3))))
    small_px = int(rng.integers(14, 49)) if rng.uniform() < 0.4 else 0
    if 0 < small_px < drawn_px:
        image = degrade.enlarge(degrade.spoil(degrade.shrink(image, small_px), rng), side_px, rng)
        visible = np.where(heights * small_px < SMALLEST_FACE_PX, 0.0, visible)
    else:
        filter_ = cv2.INTER_AREA if rng.uniform() < 0.5 else cv2.INTER_LINEAR
        image = cv2.resize(image, (side_px, side_px), interpolation=filter_).astype(np.uint8, copy=False)
    scale = side_px / drawn_px
    boxes, landmarks = example.boxes * scale, example.landmarks * scale
    centre = boxes[face] if face >= 0 else np.full(4, rng.uniform(0, side_px))
    left, top = _corner(centre[[0, 2]], side_px, rng), _corner(centre[[1, 3]], side_px, rng)
    window = np.zeros((WINDOW_PX, WINDOW_PX, 3), np.uint8)
    cut = image[top : top + WINDOW_PX, left : left + WINDOW_PX]
    window[: cut.shape[0], : cut.shape[1]] = cut
    return _in_window(window, boxes - [left, top, left, top], landmarks - [left, top], visible)


def _in_window(window: degrade.Picture, boxes: NDArray, landmarks: NDArray, visible: NDArray) -> Example:
    """Reckon in what the window cuts off; boxes keep their true size, so that a large face's part is not a small face."""
    inside = np.clip(boxes, 0, WINDOW_PX)
    kept = (inside[:, 2] - inside[:, 0]) * (inside[:, 3] - inside[:, 1])
    whole = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return Example(window, boxes, landmarks, visible * kept / np.maximum(whole, 1e-6))


def cell_points(side_px: int = WINDOW_PX) -> NDArray:
    """Return the points (K, 2) px, x and y, that the cells of a square picture speak for, in the network's order."""
    rows, columns = np.mgrid[: side_px // STRIDE, : side_px // STRIDE]
    return (np.stack([columns.ravel(), rows.ravel()], 1) * STRIDE).astype(np.float32)


_POINTS = cell_points()


def assign(example: Example) -> tuple[NDArray, NDArray]:
    """Say for each cell what it should answer: (score (K,): above 0 face, 0 none, -1 not asked; index (K,) of its face or -1).

    Cells near the middle of a face of a fitting size answer for it; cells around them are not asked, nor is any cell of a
    face that is nearly of a fitting size, mostly hidden, cut off or smudged.
    """
    wanted, index = np.zeros(len(_POINTS), np.float32), np.full(len(_POINTS), -1)
    for face in np.argsort(-(example.boxes[:, 3] - example.boxes[:, 1])) if len(example.boxes) else []:
        left, top, right, bottom = example.boxes[face]
        width, height = right - left, bottom - top
        if width < 1 or height < 1 or not ALLOWED_HEIGHTS_PX[0] <= height <= ALLOWED_HEIGHTS_PX[1]:
            continue
        centre = np.array([left + right, top + bottom]) / 2
        away = np.hypot(*((_POINTS - centre) / (np.array([width, height]) / 2)).T)
        wanted[(away < 0.9) & (wanted == 0)] = -1
        if example.visible[face] < 0.55 or not FACE_HEIGHTS_PX[0] <= height <= FACE_HEIGHTS_PX[1]:
            continue
        near = away <= max(0.5, float(away.min()))
        wanted[near] = LEAST_SCORE + (1 - LEAST_SCORE) * min(1.0, height / SURE_HEIGHT_PX)
        index[near] = face
    return wanted, index


def _targets(batch: list[Example]) -> Answer:
    """Return what the network should answer; scores are -1 where nothing is asked."""
    wanted = np.zeros((len(batch), len(_POINTS)), np.float32)
    boxes = np.ones((len(batch), len(_POINTS), 4), np.float32)
    landmarks = np.zeros((len(batch), len(_POINTS), 10), np.float32)
    for b, example in enumerate(batch):
        wanted[b], index = assign(example)
        cells = np.flatnonzero(index >= 0)
        points, box = _POINTS[cells], example.boxes[index[cells]]
        boxes[b, cells] = np.concatenate([points - box[:, :2], box[:, 2:] - points], 1) / STRIDE
        offsets = example.landmarks[index[cells]] - points[:, None]
        landmarks[b, cells] = offsets.reshape(-1, 10) / STRIDE
    return Answer(*(torch.from_numpy(values) for values in (wanted, boxes, landmarks)))


def detection_loss(predicted: Answer, targets: Answer) -> Tensor:
    """Quality focal loss of the scores (Li et al. 2020), IoU loss of the boxes, L1 of sides and landmarks over the face's size."""
    logits, boxes, landmarks = predicted
    wanted, true_boxes, true_landmarks = targets
    positive, asked = wanted > 0, wanted >= 0
    faces = positive.sum().clamp(min=1)
    error = torch.sigmoid(logits) - wanted
    cross = nn.functional.binary_cross_entropy_with_logits(logits, wanted.clamp(min=0), reduction="none")
    weight = torch.where(positive, 1.0, FALSE_ALARM_WEIGHT)
    score = ((error**2) * cross * asked * weight).sum() / faces
    mine, true = boxes[positive], true_boxes[positive]
    # A side on the wrong side of its cell counts as none: an intersection larger than the box would unlearn everything.
    sides = mine.clamp(min=0)
    overlap = torch.minimum(sides, true)
    inter = (overlap[:, 0] + overlap[:, 2]) * (overlap[:, 1] + overlap[:, 3])
    area_mine = (sides[:, 0] + sides[:, 2]) * (sides[:, 1] + sides[:, 3])
    area_true = (true[:, 0] + true[:, 2]) * (true[:, 1] + true[:, 3])
    iou = inter / (area_mine + area_true - inter).clamp(min=1e-6)
    size = torch.sqrt(area_true.clamp(min=1e-3))[:, None]
    drift = nn.functional.smooth_l1_loss(mine / size, true / size, beta=0.05)
    points = nn.functional.smooth_l1_loss(landmarks[positive] / size, true_landmarks[positive] / size, beta=0.02)
    return score + (1 - iou).mean() + 2 * drift + 20 * points


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
    outputs: dict[str, dict[str, list[int | str]]] = {"score": {}, "bbox": {}, "kps": {}}
    for stride in STRIDES:
        x, factor = "input.1", stride // STRIDE
        if factor > 1:
            x = graph.node("AveragePool", [x], f"halved{stride}", kernel_shape=[factor] * 2, strides=[factor] * 2)
        for i, unit in enumerate(model.units):
            x = graph.unit(x, unit, f"unit{i}.{stride}")  # type: ignore[arg-type]
        for name, shape in _save_head(graph, model, x, stride).items():
            outputs[name.split("_")[0]][name] = shape
    ordered = outputs["score"] | outputs["bbox"] | outputs["kps"]
    return graph.save(file, "miniature_scrfd", [1, 3, "height", "width"], ordered)


def _save_head(graph: Graph, model: Detector, x: str, stride: int) -> dict[str, list[int | str]]:
    """Write the head for one stride; returns its outputs and their shapes."""
    assert model.out.bias is not None
    weight, bias = model.out.weight.detach(), model.out.bias.detach()
    shapes: dict[str, list[int | str]] = {}
    for name, part in (("score", slice(0, 1)), ("bbox", slice(1, 5)), ("kps", slice(5, 15))):
        count = part.stop - part.start
        y = graph.convolution(x, weight[part], bias[part], f"{name}{stride}.one")
        if name == "score":
            y = graph.node("Sigmoid", [y], f"{name}{stride}.probability")
        both = graph.node("Concat", [y, y], f"{name}{stride}.anchors", axis=1)
        last = graph.node("Transpose", [both], f"{name}{stride}.last", perm=[0, 2, 3, 1])
        shape = graph.constant(f"{name}{stride}.shape", np.array([-1, count], np.int64))
        result = graph.node("Reshape", [last, shape], f"{name}_{stride}")
        shapes[result] = [f"cells{stride}", count]
    return shapes
