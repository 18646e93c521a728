"""A face pack of two hand-made ONNX graphs: it finds green discs, and tells them apart by their red and blue quarters.

Nothing is trained. The detector has SCRFD's nine outputs: how green the neighbourhood of a cell is becomes its score at
stride 8; boxes and landmarks are the same at every cell. The recogniser averages red and blue over a coarse grid.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

RADIUS_PX = 32
STRIDES = (8, 16, 32)
BOX = (RADIUS_PX / 8,) * 4  # distances to left, top, right, bottom in strides
POINTS_PX = ((-12, -10), (12, -10), (0, 0), (-9, 14), (9, 14))


def disc(image_HWC: np.ndarray, x: int, y: int, identity: int, noise: int = 0) -> np.ndarray:
    """Draw a toy face of an identity around (x, y); returns the image."""
    rng = np.random.default_rng(identity)
    quarters = rng.integers(0, 60, (2, 2, 2))
    rows, columns = np.mgrid[: image_HWC.shape[0], : image_HWC.shape[1]]
    inside = (columns - x) ** 2 + (rows - y) ** 2 < RADIUS_PX**2
    for down in (0, 1):
        for right in (0, 1):
            part = inside & ((rows >= y) == bool(down)) & ((columns >= x) == bool(right))
            red, blue = quarters[down, right]
            image_HWC[part] = (red, 255, blue)
    if noise:
        shaken = image_HWC.astype(int) + np.random.default_rng(noise).integers(-6, 7, image_HWC.shape)
        image_HWC[...] = np.clip(shaken, 0, 255).astype(np.uint8)
    return image_HWC


def toy_photo(*faces: tuple[int, int, int], side_px: int = 256, noise: int = 0) -> np.ndarray:
    """A grey picture with toy faces (x, y, identity)."""
    image_HWC = np.full((side_px, side_px, 3), 120, np.uint8)
    for x, y, identity in faces:
        disc(image_HWC, x, y, identity)
    return disc(image_HWC, -999, -999, 0, noise) if noise else image_HWC


def _constant(name: str, values: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ascontiguousarray(values), name)


def _save(path: Path, nodes: list, weights: list, shape: list, outputs: list) -> None:
    graph = helper.make_graph(
        nodes, path.stem, [helper.make_tensor_value_info("input.1", TensorProto.FLOAT, shape)], outputs, weights
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _detector(path: Path) -> None:
    nodes, weights = [], [_constant("green", np.array([-0.5, 1, -0.5], np.float32).reshape(1, 3, 1, 1))]
    nodes.append(helper.make_node("Conv", ["input.1", "green"], ["greenness"], kernel_shape=[1, 1]))
    outputs: dict[str, list] = {"score": [], "box": [], "points": []}
    fixed = {"box": np.array(BOX), "points": np.array(POINTS_PX, float).ravel() / 8}
    for stride in STRIDES:
        half = (7 * stride - stride) // 2
        pooled = f"pooled{stride}"
        nodes.append(
            helper.make_node(
                "AveragePool",
                ["greenness"],
                [pooled],
                kernel_shape=[7 * stride] * 2,
                strides=[stride] * 2,
                pads=[half + stride // 2, half + stride // 2, half - stride // 2, half - stride // 2],
            )
        )
        gain = np.array([[[[12.0]]]] * 2, np.float32) if stride == 8 else np.zeros((2, 1, 1, 1), np.float32)
        bias = np.full(2, -14.0 if stride == 8 else -50.0, np.float32)
        for kind, size in (("score", 1), ("box", 4), ("points", 10)):
            weight = gain if kind == "score" else np.zeros((2 * size, 1, 1, 1), np.float32)
            offset = bias if kind == "score" else np.tile(fixed[kind], 2).astype(np.float32)
            name = f"{kind}{stride}"
            weights += [
                _constant(f"{name}.w", weight),
                _constant(f"{name}.b", offset),
                _constant(f"{name}.s", np.array([-1, size])),
            ]
            nodes.append(
                helper.make_node("Conv", [pooled, f"{name}.w", f"{name}.b"], [f"{name}.c"], kernel_shape=[1, 1])
            )
            result = f"{name}.c"
            if kind == "score":
                nodes.append(helper.make_node("Sigmoid", [result], [f"{name}.g"]))
                result = f"{name}.g"
            nodes.append(helper.make_node("Transpose", [result], [f"{name}.t"], perm=[0, 2, 3, 1]))
            nodes.append(helper.make_node("Reshape", [f"{name}.t", f"{name}.s"], [name]))
            outputs[kind].append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [f"n{stride}", size]))
    _save(path, nodes, weights, [1, 3, "h", "w"], outputs["score"] + outputs["box"] + outputs["points"])


def _recogniser(path: Path) -> None:
    # Centre 64 px of the aligned face, red and blue, 4x4 cells, without their mean.
    nodes = [
        helper.make_node("Slice", ["input.1", "start", "end", "axes"], ["centre"]),
        helper.make_node("Gather", ["centre", "channels"], ["colours"], axis=1),
        helper.make_node("AveragePool", ["colours"], ["cells"], kernel_shape=[16, 16], strides=[16, 16]),
        helper.make_node("ReduceMean", ["cells"], ["mean"], axes=[1, 2, 3], keepdims=1),
        helper.make_node("Sub", ["cells", "mean"], ["even"]),
        helper.make_node("Flatten", ["even"], ["embedding"]),
    ]
    weights = [
        _constant("start", np.array([24, 24])),
        _constant("end", np.array([88, 88])),
        _constant("axes", np.array([2, 3])),
        _constant("channels", np.array([0, 2])),
    ]
    embedding = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", 32])
    _save(path, nodes, weights, ["n", 3, 112, 112], [embedding])


def build_toy_pack(folder: Path) -> Path:
    """Write detector.onnx and recogniser.onnx; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    _detector(folder / "detector.onnx")
    _recogniser(folder / "recogniser.onnx")
    return folder
