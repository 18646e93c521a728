"""LoKr files read as LoRAs: a Kronecker product of two small matrices, each of which may itself be a product.

W1 ⊗ W2 with W1 = U1·D1 and W2 = U2·D2 equals (U1 ⊗ U2)·(D1 ⊗ D2), so its factors as a LoRA are exact and their rank is
the product of the ranks. For full matrices that rank is that of the whole weight; then a best approximation is taken,
whose singular values are all products of one of W1's and one of W2's. Scale: alpha over the rank of the last matrix
that is a product, 1 where none is (LyCORIS, ComfyUI weight_adapter/lokr.py).

Axes: R rank, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from pathlib import Path

import torch

from likeness.config.training import HIGHEST_LOKR_RANK
from likeness.errors import UserError
from likeness.lora.adapter import LoraModule
from likeness.lora.stream import MappedTensors

SIDES = ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b")
"""What a LoKr module may hold beside alpha; keys end in `.lokr_<side>`."""

HIGHEST_RANK = HIGHEST_LOKR_RANK
"""Above it a LoKr is not read exactly: a LoRA of that rank would be larger than the weights it changes."""


def is_lokr(sides: Mapping[str, object]) -> bool:
    """Whether a module's tensors are those of a LoKr, complete: each matrix whole or as a product of two."""
    return all(side in sides or {f"{side}_a", f"{side}_b"} <= set(sides) for side in ("w1", "w2"))


def lokr_module(parts: Mapping[str, torch.Tensor], rank: int | None, where: str) -> LoraModule:
    """A LoKr module as a LoRA module: exact, or its best approximation of `rank` where its own rank is higher.

    Factors are float32, since products of half types fit into none; files keep them in the widest type of the parts.
    UserError where the shapes do not fit, or where its own rank is above 512 and no rank is given.
    """
    first, second = (_pair(parts, side, where) for side in ("w1", "w2"))
    own_rank = first[0].shape[1] * second[0].shape[1]
    scale = _scale(parts)
    stored = reduce(torch.promote_types, (parts[side].dtype for side in SIDES if side in parts))
    if rank is not None and rank < own_rank:
        return _approximation(first[0] @ first[1], second[0] @ second[1], rank, scale)._replace(stored=stored)
    if own_rank > HIGHEST_RANK:
        raise UserError(
            f"{where} is a LoKr of rank {own_rank} as a LoRA, more than {HIGHEST_RANK}: it can only be approximated. "
            "Convert it first: scripts/convert_lora.py IN OUT --format diffusers --lokr-rank 64"
        )
    up_OR, down_RI = torch.kron(first[0], second[0]), torch.kron(first[1], second[1])
    return LoraModule(down_RI, up_OR, scale, stored)


def lokr_size(parts: Mapping[str, torch.Tensor], where: str) -> tuple[int, float, torch.Tensor, int]:
    """A LoKr module's own rank as a LoRA, its scale, the squared norm of every row of its change (O,), and its inputs.

    Exact at any rank: rows of a Kronecker product are Kronecker products of rows, whose norms multiply.
    """
    first, second = (_pair(parts, side, where) for side in ("w1", "w2"))
    scale = _scale(parts)
    squares = [(up_OR @ down_RI).double().square().sum(dim=1) for up_OR, down_RI in (first, second)]
    rank = first[0].shape[1] * second[0].shape[1]
    return rank, scale, scale**2 * torch.kron(*squares), first[1].shape[1] * second[1].shape[1]


def _pair(parts: Mapping[str, torch.Tensor], side: str, where: str) -> tuple[torch.Tensor, torch.Tensor]:
    """One of the two matrices as a product of the lowest rank that needs no arithmetic."""
    tensors = [parts[side]] if side in parts else [parts[f"{side}_a"], parts[f"{side}_b"]]
    fitting = all(tensor.ndim == 2 for tensor in tensors)
    if not fitting or (len(tensors) == 2 and tensors[0].shape[1] != tensors[1].shape[0]):
        shapes = " and ".join(str(tuple(tensor.shape)) for tensor in tensors)
        raise UserError(f"{where}: lokr_{side} has the shapes {shapes}, which are no matrices that fit each other.")
    if len(tensors) == 2:
        return tensors[0].float(), tensors[1].float()
    whole = tensors[0].float()
    rows, columns = whole.shape
    return (whole, torch.eye(columns)) if columns <= rows else (torch.eye(rows), whole)


def _scale(parts: Mapping[str, torch.Tensor]) -> float:
    rank = next((parts[f"{side}_b"].shape[0] for side in ("w2", "w1") if f"{side}_b" in parts), None)
    return float(parts["alpha"]) / rank if rank and "alpha" in parts else 1.0


def _approximation(first: torch.Tensor, second: torch.Tensor, rank: int, scale: float) -> LoraModule:
    left, singular, right = torch.linalg.svd(first.double(), full_matrices=False)
    left2, singular2, right2 = torch.linalg.svd(second.double(), full_matrices=False)
    products = torch.outer(singular, singular2).reshape(-1)
    largest = products.topk(min(rank, len(products))).indices
    one, other = largest // len(singular2), largest % len(singular2)
    up_OR = (left[:, None, one] * left2[None, :, other]).reshape(-1, len(largest))
    down_RI = (right[one][:, :, None] * right2[other][:, None, :]).reshape(len(largest), -1)
    share_R = products[largest].sqrt()
    return LoraModule((share_R[:, None] * down_RI).float(), (up_OR * share_R).float(), scale)


def lokr_tensors(
    modules: Mapping[str, Mapping[str, torch.Tensor]], scales: Mapping[str, float]
) -> dict[str, torch.Tensor]:
    """A LoKr's tensors under the names of a file in diffusers' layout, each module's scale multiplied into its w1.

    `modules` maps a module's name to its matrices by side (`w1`, `w2_a` …). Without alpha and config every loader
    applies scale 1.
    """
    tensors = {}
    for name, parts in modules.items():
        for side, matrix in parts.items():
            folded = (matrix.float() * scales[name]).to(matrix.dtype) if side in ("w1", "w1_a") else matrix
            tensors[f"transformer.{name}.lokr_{side}"] = folded
    return tensors


def lokr_parts(tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """Matrices by module and side of a file that `lokr_tensors` made; empty for any other."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key in tensors:
        name, dot, side = key.removeprefix("transformer.").partition(".lokr_")
        if dot and side in SIDES:
            found.setdefault(name, {})[side] = tensors[key]
    return found


def is_own_lokr(path: Path) -> bool:
    """Whether a file holds a LoKr as `lokr_tensors` writes it, which diffusers loads as it is; its header is read."""
    keys = list(MappedTensors(path))
    return all(key.startswith("transformer.") and ".lokr_" in key for key in keys)
