"""The frozen base's matrices, stored otherwise than they are computed with: in 8 bits, or in main memory.

A frozen matrix needs no gradient of its own, only to pass one on to its input, so the backward pass restores it anew
instead of keeping a restored copy, and memory holds the stored form alone. One scale a row of outputs is folded into the
output (forward) and into its gradient (backward): what is stored in 8 bits is exactly what is computed with, and scales
are rounded to the type of the computation before anything is stored with them.

Axes: M tokens, I inputs, O outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import ScalingType, linear, scaled_mm

from likeness.errors import UserError
from likeness.klein.family import DOUBLE_MODULES, SINGLE_MODULES

FLOAT8 = torch.float8_e4m3fn
LARGEST = {FLOAT8: 448.0, torch.int8: 127.0}
ALIGNED = 16
"""Sides of matrices that are multiplied in 8 bits are multiples of this."""


class FrozenLinear(nn.Linear):
    """A linear layer without gradient for its weight, which is stored in a form of its own; peft wraps it as any other."""

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias = layer.bias

    @property
    def weight(self) -> torch.Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The matrix (O, I) as it is computed with; made anew at every look."""
        raise NotImplementedError


class InMainMemory(FrozenLinear):
    """The matrix as it is, in main memory, copied to the device of its input whenever it is used."""

    def __init__(self, layer: nn.Linear, device: torch.device, pinned: bool) -> None:
        super().__init__(layer)
        matrix_OI = layer.weight.detach().to("cpu")
        # Pinned memory is copied while the GPU computes, but costs time to make.
        self.matrix_OI = matrix_OI.pin_memory() if pinned and device.type == "cuda" else matrix_OI
        self.device = device

    @property
    def weight(self) -> torch.Tensor:
        return self.matrix_OI.to(self.device, non_blocking=True)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _Copied.apply(input, self.matrix_OI, self.bias)  # pyright: ignore[reportReturnType]


class In8Bits(FrozenLinear):
    """The matrix in float8 or int8 with a scale a row, turned into the type of its input whenever it is used."""

    def __init__(self, layer: nn.Linear, matrix_OI: torch.Tensor, stored: torch.dtype) -> None:
        super().__init__(layer)
        scale_O1 = row_scales(matrix_OI, stored, matrix_OI.dtype)
        self.register_buffer("values_OI", stored_values(matrix_OI, scale_O1, stored), persistent=False)
        self.register_buffer("scale_O", scale_O1[:, 0].contiguous(), persistent=False)

    @property
    def weight(self) -> torch.Tensor:
        return self.values_OI.to(self.scale_O.dtype) * self.scale_O[:, None]  # pyright: ignore

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _Restored.apply(input, self.values_OI, self.scale_O, self.bias)  # pyright: ignore[reportReturnType]


class MultipliedIn8Bits(In8Bits):
    """The matrix in float8, and its inputs and the gradients too: what a GPU from Ada or Hopper on multiplies twice as fast."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _Multiplied.apply(input, self.values_OI, self.scale_O, self.bias)  # pyright: ignore[reportReturnType]


def row_scales(matrix_OI: torch.Tensor, stored: torch.dtype, dtype: torch.dtype) -> torch.Tensor:
    """The scale of every row, (O, 1), in `dtype`; never so small that a value would not fit."""
    matrix_OI = matrix_OI.detach()
    # Two extremes need no copy of the matrix, as its absolute values would.
    largest_O1 = torch.maximum(matrix_OI.amax(dim=1, keepdim=True), -matrix_OI.amin(dim=1, keepdim=True)).float()
    exact_O1 = (largest_O1 / LARGEST[stored]).clamp(min=torch.finfo(torch.float32).tiny)
    scale_O1 = exact_O1.to(dtype)
    step = torch.finfo(dtype).eps
    return torch.where(scale_O1.float() < exact_O1, scale_O1 * (1 + step), scale_O1)


def stored_values(matrix_OI: torch.Tensor, scale_O1: torch.Tensor, stored: torch.dtype) -> torch.Tensor:
    """A matrix over its scales in 8 bits, rounded to the nearest."""
    # One copy in float32, and no second: gradients of the widest layers would take gigabytes.
    values_OI = matrix_OI.detach().to(torch.float32, copy=True).div_(scale_O1.float())
    if not stored.is_floating_point:
        values_OI.round_()
    return values_OI.clamp_(-LARGEST[stored], LARGEST[stored]).to(stored)


class _Copied(torch.autograd.Function):
    """The product with a matrix that lies elsewhere; it is copied in both passes and kept in neither."""

    @staticmethod
    def forward(ctx: Any, input_MI: torch.Tensor, matrix_OI: torch.Tensor, bias_O: torch.Tensor | None) -> torch.Tensor:
        ctx.matrix_OI = matrix_OI
        return linear(input_MI, matrix_OI.to(input_MI.device, non_blocking=True), bias_O)

    @staticmethod
    def backward(ctx: Any, gradient_MO: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradient_MO @ ctx.matrix_OI.to(gradient_MO.device, non_blocking=True), None, None


class _Restored(torch.autograd.Function):
    """The product with a matrix in 8 bits, computed in the type of the input."""

    @staticmethod
    def forward(
        ctx: Any, input_MI: torch.Tensor, values_OI: torch.Tensor, scale_O: torch.Tensor, bias_O: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(values_OI, scale_O)
        output_MO = linear(input_MI, values_OI.to(input_MI.dtype)) * scale_O
        return output_MO if bias_O is None else output_MO + bias_O

    @staticmethod
    def backward(ctx: Any, gradient_MO: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        values_OI, scale_O = ctx.saved_tensors
        return (gradient_MO * scale_O) @ values_OI.to(gradient_MO.dtype), None, None, None


class _Multiplied(torch.autograd.Function):
    """The product of a matrix and an input that are both in float8, and likewise for the gradient."""

    @staticmethod
    def forward(
        ctx: Any, input_MI: torch.Tensor, values_OI: torch.Tensor, scale_O: torch.Tensor, bias_O: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(values_OI, scale_O)
        output_MO = product(input_MI, values_OI.t(), scale_O)
        return output_MO if bias_O is None else output_MO + bias_O

    @staticmethod
    def backward(ctx: Any, gradient_MO: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        values_OI, scale_O = ctx.saved_tensors
        # The rows' scales are summed over here, so they go into the gradient before it is brought to 8 bits.
        by_column_OI = values_OI.t().contiguous().t()
        return product(gradient_MO * scale_O, by_column_OI, torch.ones_like(by_column_OI[0], dtype=torch.float32)), *[
            None
        ] * 3


def product(left: torch.Tensor, right_IO: torch.Tensor, scale_O: torch.Tensor) -> torch.Tensor:
    """`left` (…, I), brought to float8 row by row, times `right_IO` in float8 (by columns) with a scale a column."""
    left_MI = left.reshape(-1, left.shape[-1])
    scale_M1 = row_scales(left_MI, FLOAT8, torch.float32)
    # GPUs give bfloat16 alone for scales by row.
    output_dtype = torch.bfloat16 if left.is_cuda else left.dtype
    values_MI = stored_values(left_MI, scale_M1, FLOAT8)
    output_MO = multiply(values_MI, scale_M1, right_IO, scale_O, output_dtype)
    return output_MO.to(left.dtype).view(*left.shape[:-1], output_MO.shape[-1])


def multiply(
    left_MI: torch.Tensor,
    scale_M1: torch.Tensor,
    right_IO: torch.Tensor,
    scale_O: torch.Tensor,
    output_dtype: torch.dtype = torch.bfloat16,
) -> torch.Tensor:
    """The product (M, O) of two matrices in float8, with a scale a row of the left one and a column of the right one."""
    return scaled_mm(
        left_MI,
        right_IO,
        scale_M1,
        ScalingType.RowWise,
        scale_O.float()[None, :],
        ScalingType.RowWise,
        output_dtype=output_dtype,
    )


def block_linears(transformer: nn.Module) -> list[str]:
    """Names of the linear layers of the blocks, where nearly all weights are, bare or within an adapter."""
    endings = tuple(f".{ending}" for ending in (*DOUBLE_MODULES, *SINGLE_MODULES))
    return [
        name
        for name, module in transformer.named_modules()
        if "transformer_blocks." in name
        and name.endswith(endings)
        and isinstance(getattr(module, "base_layer", module), nn.Linear)
    ]


def linear_at(transformer: nn.Module, name: str) -> nn.Linear:
    """A linear layer, taken out of its adapter where it has one."""
    module = transformer.get_submodule(name)
    layer = getattr(module, "base_layer", module)
    assert isinstance(layer, nn.Linear)
    return layer


def put_linear(transformer: nn.Module, name: str, layer: nn.Linear) -> None:
    """Exchange a linear layer, within an adapter where it has one."""
    module = transformer.get_submodule(name)
    if hasattr(module, "base_layer"):
        module.base_layer = layer
    else:
        transformer.set_submodule(name, layer)


def hold_in_main_memory(transformer: nn.Module, device: torch.device, pinned: bool = True) -> None:
    """Leave the blocks' matrices in main memory, and put all else on the device."""
    for name in block_linears(transformer):
        put_linear(transformer, name, InMainMemory(linear_at(transformer, name), device, pinned))
    transformer.to(device)


KINDS = {"int8": (In8Bits, torch.int8), "fp8": (In8Bits, FLOAT8), "fp8_matmul": (MultipliedIn8Bits, FLOAT8)}
FIRST_WITH_FLOAT8 = (8, 9)
"""Compute capability of the first GPUs that multiply float8: Ada, then Hopper."""


def check_kind(kind: str, device: torch.device) -> None:
    """Raise UserError where the device cannot compute with matrices of this kind."""
    if kind != "fp8_matmul" or device.type != "cuda":
        return
    capability = torch.cuda.get_device_capability(device)
    if capability < FIRST_WITH_FLOAT8:
        raise UserError(
            f"training.base_precision: fp8_matmul needs a GPU that multiplies float8 (compute capability 8.9: Ada or Hopper), "
            f"and this one has {capability[0]}.{capability[1]}. Set fp8, which stores the same and computes in precision."
        )


def quantise(transformer: nn.Module, kind: str) -> None:
    """Bring the blocks' matrices to 8 bits, one after the other; sides that do not fit the arithmetic are only stored so."""
    layer_class, stored = KINDS[kind]
    for name in block_linears(transformer):
        layer = linear_at(transformer, name)
        aligned = layer.in_features % ALIGNED == 0 and layer.out_features % ALIGNED == 0
        put_linear(transformer, name, (layer_class if aligned else In8Bits)(layer, layer.weight, stored))
