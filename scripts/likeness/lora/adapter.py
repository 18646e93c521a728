"""A LoRA in memory: for every adapted module its two factors and its scale, whatever file it came from.

A module's change of weight is scale · B · A. Names are diffusers' module names without a prefix.

Axes: R rank, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch

from likeness.errors import UserError
from likeness.klein.family import KNOWN_LAYOUTS, Layout, linear_shapes


class LoraModule(NamedTuple):
    """Factors and scale of one linear module; A_RI and B_OR have one floating-point type.

    `stored` is the narrower type that a file keeps them in, where they were computed in a wider one.
    """

    A_RI: torch.Tensor
    B_OR: torch.Tensor
    scale: float
    stored: torch.dtype | None = None

    @property
    def rank(self) -> int:
        """Number of rows of A."""
        return self.A_RI.shape[0]

    @property
    def file_type(self) -> torch.dtype:
        """The type in which the factors are written, unless another one is asked for."""
        return self.stored or self.A_RI.dtype

    def cast(self, dtype: torch.dtype | None = None) -> LoraModule:
        """The same module with factors of a type, by default the one of its file."""
        dtype = dtype or self.file_type
        return LoraModule(self.A_RI.to(dtype), self.B_OR.to(dtype), self.scale)

    def delta(self) -> torch.Tensor:
        """The change of weight, scale · B · A, as delta_OI in float32."""
        return self.scale * (self.B_OR.float() @ self.A_RI.float())

    def wide(self) -> LoraModule:
        """The same module with factors of float32 at least, which files keep in the type that they had."""
        dtype = torch.promote_types(self.A_RI.dtype, torch.float32)
        return self.cast(dtype)._replace(stored=self.file_type)

    def folded(self) -> LoraModule:
        """The same change with scale 1: the scale is multiplied into B, in float32, and B keeps its type."""
        return self._replace(B_OR=(self.B_OR.float() * self.scale).to(self.B_OR.dtype), scale=1.0)


@dataclass(frozen=True)
class Lora:
    """Modules by diffusers name, sorted; the file's metadata; and the name of the format it was read from."""

    modules: Mapping[str, LoraModule]
    metadata: Mapping[str, str] = field(default_factory=dict)
    format: str = "diffusers"

    def loaded(self) -> Lora:
        """The same LoRA with all its modules in memory, where they were made when asked for."""
        return replace(self, modules=dict(self.modules))

    def cast(self, dtype: torch.dtype) -> Lora:
        """The same LoRA with factors of another type."""
        return replace(self, modules={name: module.cast(dtype) for name, module in self.modules.items()})

    def folded(self) -> Lora:
        """The same LoRA with every scale multiplied into B."""
        return Lora({name: module.folded() for name, module in self.modules.items()}, self.metadata, self.format)


def lora_of(state_dict: Mapping[str, torch.Tensor], scale: float) -> Lora:
    """Make a Lora from PEFT's state dict (`<module>.lora_A.weight`, with or without the prefix `transformer.`)."""
    sides: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in state_dict.items():
        name, dot, side = key.removeprefix("transformer.").partition(".lora_")
        if not dot or side not in ("A.weight", "B.weight"):
            raise ValueError(f"not a LoRA weight of a linear module: {key!r}")
        sides.setdefault(name, {})[side[0]] = tensor.detach().cpu()
    return Lora({name: LoraModule(sides[name]["A"], sides[name]["B"], scale) for name in sorted(sides)})


def widened(down_RI: torch.Tensor, up_OR: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both factors in the smallest type that holds the values of both."""
    dtype = torch.promote_types(down_RI.dtype, up_OR.dtype)
    return down_RI.to(dtype), up_OR.to(dtype)


def relative_difference(first: LoraModule, second: LoraModule) -> float:
    """Frobenius norm of the difference of two changes of weight over the norm of the first; infinite for other shapes.

    Computed from the factors' Gram matrices in float64, without building the changes: exact to about 1e-8.
    """
    if first.B_OR.shape[0] != second.B_OR.shape[0] or first.A_RI.shape[1] != second.A_RI.shape[1]:
        return float("inf")
    if first.scale == second.scale and _equal(first.A_RI, second.A_RI) and _equal(first.B_OR, second.B_OR):
        return 0.0
    up_OR = torch.cat([first.scale * first.B_OR.double(), -second.scale * second.B_OR.double()], dim=1)
    down_RI = torch.cat([first.A_RI.double(), second.A_RI.double()])
    products_RR = (up_OR.T @ up_OR) * (down_RI @ down_RI.T)
    own = products_RR[: first.rank, : first.rank].sum().clamp_min(0).sqrt()
    difference = products_RR.sum().clamp_min(0).sqrt()
    return float(difference / own) if own > 0 else (0.0 if difference == 0 else float("inf"))


def _equal(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two matrices hold the same values, whatever their types."""
    widest = torch.promote_types(first.dtype, second.dtype)
    return first.shape == second.shape and torch.equal(first.to(widest), second.to(widest))


def family_of(lora: Lora) -> str | None:
    """Name the known layout whose modules and shapes the LoRA fits ('klein-4b', 'klein-9b'), or None."""
    fitting = (name for name, layout in KNOWN_LAYOUTS.items() if _first_misfit(lora, layout) is None)
    return next(fitting, None)


def check_fits(lora: Lora, layout: Layout, where: str) -> None:
    """Raise UserError, naming the first module that the layout lacks or that has another shape in it."""
    misfit = _first_misfit(lora, layout)
    if misfit:
        family = family_of(lora)
        hint = f"It fits {family}: use that base model." if family else "It was trained for another model family."
        raise UserError(f"{where} does not fit the base model {layout.name}: {misfit}. {hint}")


def _first_misfit(lora: Lora, layout: Layout) -> str | None:
    shapes = linear_shapes(layout)
    for name, module in lora.modules.items():
        found = (module.B_OR.shape[0], module.A_RI.shape[1])
        if name not in shapes:
            return f"the model has no module {name!r}"
        if found != shapes[name]:
            return f"{name!r} is (outputs, inputs) {found} in the file and {shapes[name]} in the model"
    return None
