"""Write trained torch layers as an ONNX graph by hand: no exporter, no tracing, the same bytes every time.

Only what the miniature's two face networks use. Batch norms are folded into the convolution before them, so that the
file holds convolutions, activations, pools and little else. Opset 12 and IR 8 are what insightface's own packs use.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

OPSET = 12
IR_VERSION = 8


class ConvUnit(nn.Module):
    """Convolution, batch norm and ReLU (or leaky ReLU), with the padding that keeps cell (i, j) above pixel (i, j) x stride."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, leak: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.leak = leak

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.leaky_relu(self.norm(self.conv(x)), self.leak)


class Graph:
    """Nodes and weights of one ONNX model; every method adds a node and returns the name of its result."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self._names: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def constant(self, name: str, values: np.ndarray) -> str:
        """Add a named constant, or return the name of an equal one: layers used at several scales are stored once."""
        values = np.ascontiguousarray(values)
        name = self._names.setdefault((str(values.dtype), values.shape, values.tobytes()), name)
        if all(weight.name != name for weight in self.weights):
            self.weights.append(numpy_helper.from_array(values, name))
        return name

    def node(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """Add a node; its result has the node's name."""
        self.nodes.append(helper.make_node(kind, inputs, [name], name=f"{kind}_{name}", **attributes))
        return name

    def convolution(self, x: str, weight: torch.Tensor, bias: torch.Tensor, name: str, stride: int = 1) -> str:
        """Add a convolution with a square odd kernel, padded by half of it."""
        kernel = weight.shape[-1]
        inputs = [x, self.constant(f"{name}.w", weight.numpy()), self.constant(f"{name}.b", bias.numpy())]
        half = kernel // 2
        return self.node("Conv", inputs, name, kernel_shape=[kernel] * 2, pads=[half] * 4, strides=[stride] * 2)

    def unit(self, x: str, unit: ConvUnit, name: str) -> str:
        """Add a trained unit with its batch norm folded into its convolution."""
        norm = unit.norm
        assert norm.running_var is not None and norm.running_mean is not None
        gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        weight = (unit.conv.weight * gain[:, None, None, None]).detach()
        bias = (norm.bias - norm.running_mean * gain).detach()
        y = self.convolution(x, weight, bias, f"{name}.conv", unit.conv.stride[0])
        return self.node("Relu", [y], name) if unit.leak == 0 else self.node("LeakyRelu", [y], name, alpha=unit.leak)

    def save(self, file: Path, title: str, input_shape: list[int | str], outputs: dict[str, list[int | str]]) -> Path:
        """Check the graph and write it; the input is called `input.1`, all tensors are float32."""
        graph = helper.make_graph(
            self.nodes,
            title,
            [helper.make_tensor_value_info("input.1", TensorProto.FLOAT, input_shape)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        onnx.checker.check_model(model)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(model.SerializeToString(deterministic=True))
        return file
