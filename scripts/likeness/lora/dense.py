"""Merging of changes of weight in full: trimming, dropping, electing signs, and back to a low rank.

TIES, DARE and magnitude pruning are defined on changes of weight, element by element; on factors they mean something
else (PEFT's `ties` and `dare_linear` do that). Their results have full rank, so a LoRA can only hold a part of them,
and that part is always stated. Sources: TIES arXiv 2306.01708, DARE arXiv 2311.03099, peft.utils.merge_utils,
mergekit's generalized_task_arithmetic and sparsify.

Axes: N LoRAs, O outputs, I inputs.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
import torch

from likeness.lora.adapter import LoraModule

Convention = Literal["peft", "mergekit"]

_EXACT_SIDE = 512
_ROWS_AT_ONCE = 64
_OVERSAMPLING, _POWER_ITERATIONS = 16, 4


def keep_largest(delta_OI: torch.Tensor, density: float) -> torch.Tensor:
    """The int(density · size) elements of largest magnitude, at least one unless the density is 0; the rest is 0."""
    count = int(density * delta_OI.numel())
    if density >= 1:
        return delta_OI
    if density <= 0:
        return torch.zeros_like(delta_OI)
    count = max(1, count)
    sizes = delta_OI.abs().reshape(-1)
    # numpy selects in linear time, where torch.topk sorts: a hundredfold for a change of 36864 × 4096.
    threshold = float(np.partition(sizes.numpy(), len(sizes) - count)[len(sizes) - count])
    kept = sizes > threshold
    ties = torch.nonzero(sizes == threshold).reshape(-1)
    kept[ties[: count - int(kept.sum())]] = True
    return torch.where(kept.reshape(delta_OI.shape), delta_OI, 0.0)


def drop_at_random(delta_OI: torch.Tensor, density: float, generator: torch.Generator) -> torch.Tensor:
    """DARE: keep each element with probability `density` (above 0) and divide it by exactly that; else 0.

    The mean over draws is the change itself; each element's variance is (1 − density) / density times its square.
    """
    if density >= 1:
        return delta_OI
    kept = torch.rand(delta_OI.shape, generator=generator) < density
    return torch.where(kept, delta_OI / density, 0.0)


def merge_by_signs(
    delta_NOI: torch.Tensor, weight_N: torch.Tensor, density: float, convention: Convention
) -> torch.Tensor:
    """TIES: trim each change to its largest elements, elect a sign for each element, average those that agree.

    `peft` elects by the sum of the trimmed changes and divides Σ weight · change by the number that agree; `mergekit`
    elects by the weighted sum and divides by the sum of the agreeing weights (by 1 where that is 0). With equal weights
    w both elect alike, and peft's result is w times mergekit's.
    """
    trimmed_NOI = torch.stack([keep_largest(delta_OI, density) for delta_OI in delta_NOI])
    # A few rows at a time: every element is on its own, and temporaries of a whole change are slow to allocate.
    pieces = [_merge_agreeing(piece, weight_N, convention) for piece in trimmed_NOI.split(_ROWS_AT_ONCE, dim=1)]
    return torch.cat(pieces)


def _merge_agreeing(trimmed_NOI: torch.Tensor, weight_N: torch.Tensor, convention: Convention) -> torch.Tensor:
    weight_N11 = weight_N[:, None, None]
    weighted_NOI = trimmed_NOI * weight_N11
    voting_NOI = trimmed_NOI if convention == "peft" else weighted_NOI
    elected_OI = torch.where(voting_NOI.sum(0) >= 0, 1.0, -1.0)
    agree_NOI = voting_NOI * elected_OI > 0
    total_OI = (weighted_NOI * agree_NOI).sum(0)
    if convention == "peft":
        return total_OI / agree_NOI.sum(0).clamp_min(1)
    divisor_OI = (agree_NOI * weight_N11).sum(0)
    return total_OI / torch.where(divisor_OI.abs() < 1e-8, 1.0, divisor_OI)


def low_rank(delta_OI: torch.Tensor, rank: int, generator: torch.Generator) -> tuple[LoraModule, float]:
    """A change of low rank near a full one, with scale 1, and the part of the energy (squared norm) that it keeps.

    The best one where a side has at most 512 values; else by random projection with power iterations (arXiv 0909.4061),
    which for pure noise, the worst case, keeps a few per cent less than the best. The part kept is measured, not
    estimated.
    """
    whole = float(delta_OI.double().square().sum())
    rank = min(rank, *delta_OI.shape)
    if min(delta_OI.shape) <= _EXACT_SIDE:
        up_OK, singular_K, down_KI = torch.linalg.svd(delta_OI.double(), full_matrices=False)
        share_K = singular_K[:rank].sqrt()
        kept = float(singular_K[:rank].square().sum())
        up_OK, down_KI = up_OK[:, :rank] * share_K, down_KI[:rank] * share_K[:, None]
    else:
        basis_OK = _random_basis(delta_OI, rank + _OVERSAMPLING, generator)
        left, singular_K, right = torch.linalg.svd((basis_OK.T @ delta_OI).double(), full_matrices=False)
        share_K = singular_K[:rank].sqrt()
        kept = float(singular_K[:rank].square().sum())
        up_OK, down_KI = basis_OK.double() @ left[:, :rank] * share_K, right[:rank] * share_K[:, None]
    module = LoraModule(down_KI.to(delta_OI.dtype).contiguous(), up_OK.to(delta_OI.dtype).contiguous(), 1.0)
    return module, min(1.0, kept / whole) if whole > 0 else 1.0


def generator_for(seed: int, name: str, *modules: LoraModule) -> torch.Generator:
    """Randomness that depends on the seed, a module's name and its values alone, not on order, files or threads."""
    digest = hashlib.sha256(f"{seed}/{name}".encode())
    for down_RI, up_OR, scale, _ in modules:
        digest.update(repr(scale).encode())
        for factor in (down_RI, up_OR):
            digest.update(factor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return torch.Generator().manual_seed(int.from_bytes(digest.digest()[:8], "little"))


def _random_basis(delta_OI: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    """Orthonormal columns that span most of what a change can put out."""
    size = min(size, *delta_OI.shape)
    sample_IK = torch.randn(delta_OI.shape[1], size, generator=generator, dtype=delta_OI.dtype)
    basis_OK = torch.linalg.qr(delta_OI @ sample_IK).Q
    for _ in range(_POWER_ITERATIONS):
        basis_OK = torch.linalg.qr(delta_OI @ torch.linalg.qr(delta_OI.T @ basis_OK).Q).Q
    return basis_OK
