"""Arithmetic on changes of weight that are given by their factors: sums, energies and best approximations.

A change of rank r is a product B·A of a tall and a wide matrix. Everything here works on the factors and on matrices of
size r × r, so that a change of 36864 × 4096 values is never built: sums put factors side by side, and the singular
values of B·A are those of L_Bᵀ·L_A, where B ᵀB = L_B·L_Bᵀ and A·Aᵀ = L_A·L_Aᵀ are Cholesky factors of the Gram matrices
in float64. That finds singular values to about 1e-8 of the largest one (squaring halves the digits), which is below
what float32 factors hold, at a quarter of the cost of a QR decomposition of B and A.

Axes: R rank, I inputs, O outputs, K singular values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch

from likeness.errors import UserError
from likeness.lora.adapter import LoraModule

_NEGLIGIBLE = 1e-7
"""Singular values below this part of the largest are rounding: Gram matrices in float64 resolve no finer."""
_ILL_CONDITIONED = 1e-5
_CHUNK_ROWS = 4096


class Spectrum(NamedTuple):
    """Singular values of a module's change, and how its factors mix into the best change of any lower rank.

    unscaled_K are the singular values of B·A in float64, descending; B·left_RK has orthonormal columns, and right_KR·A
    has orthogonal rows with the singular values as norms.
    """

    module: LoraModule
    unscaled_K: torch.Tensor
    left_RK: torch.Tensor
    right_KR: torch.Tensor

    @property
    def singular_K(self) -> torch.Tensor:
        """Singular values of the change, scale included."""
        return abs(self.module.scale) * self.unscaled_K

    @property
    def energy(self) -> float:
        """Squared Frobenius norm of the change."""
        return float(self.singular_K.square().sum())

    def retained(self, rank: int) -> float:
        """Part of the energy that the best change of a lower rank keeps, 0 to 1; a change of nothing keeps all."""
        squares_K = self.unscaled_K.square()
        return float(squares_K[:rank].sum() / squares_K.sum()) if squares_K.any() else 1.0

    def truncated(self, rank: int) -> LoraModule:
        """The best change of a rank (Eckart–Young), of the module's scale and type, its weight shared evenly by A and B.

        The module itself where the rank is not lower than its own.
        """
        if rank >= self.module.rank:
            return self.module
        down_RI, up_OR = self.module.A_RI, self.module.B_OR
        share_K = self.unscaled_K[:rank].sqrt()
        share_K = torch.where(share_K > 0, share_K, 1.0)
        new_up_OK = _product(up_OR, self.left_RK[:, :rank] * share_K)
        new_down_KI = _product(down_RI.T, self.right_KR[:rank].T / share_K).T.contiguous()
        return self.module._replace(A_RI=new_down_KI, B_OR=new_up_OK)


def gram(tall_NR: torch.Tensor, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Inner products of the columns, gram_RR = tallᵀ·tall, in float64; rows are taken in pieces to spare memory.

    `dtype` is the type in which a piece is multiplied: float32 is twice as fast and right to about 1e-6.
    """
    total_RR = torch.zeros(tall_NR.shape[1], tall_NR.shape[1], dtype=torch.float64)
    for piece in tall_NR.split(_CHUNK_ROWS):
        piece = piece.to(dtype)
        total_RR += piece.T @ piece
    return total_RR


def energy(module: LoraModule, dtype: torch.dtype = torch.float64) -> float:
    """Squared Frobenius norm of a module's change, scale included; `dtype` as for `gram`.

    UserError where it is no number: factors that hold NaN or infinite values, or overflow together.
    """
    products_RR = gram(module.B_OR, dtype) * gram(module.A_RI.T, dtype)
    found = module.scale**2 * float(products_RR.sum())
    if math.isfinite(found):
        return max(0.0, found)
    if dtype != torch.float64:
        return energy(module)
    raise UserError(
        f"a module of {module.B_OR.shape[0]} outputs and rank {module.rank} has values that are NaN, infinite or too "
        f"large for {module.file_type}: its size cannot be told. Use a wider type."
    )


def inner(first: LoraModule, second: LoraModule) -> float:
    """Frobenius inner product of two changes of one shape, scales included, in float64."""
    ups_RS = _cross(first.B_OR, second.B_OR)
    downs_RS = _cross(first.A_RI.T, second.A_RI.T)
    return first.scale * second.scale * float((ups_RS * downs_RS).sum())


def weighted_sum(
    modules: Sequence[LoraModule], weights: Sequence[float], dtype: torch.dtype | None = None
) -> LoraModule:
    """Σ weight · change, exactly, as one module whose rank is the sum of the ranks: factors side by side.

    Modules of weight 0 are left out, unless all are. The strongest weight · scale becomes the scale of the sum and the
    others are multiplied into their B, so that equally strong ones stay bit for bit as they are. The type is `dtype`,
    else the widest of the modules' types; what is multiplied into a half type is rounded to it once.
    """
    present = [(module, weight) for module, weight in zip(modules, weights, strict=True) if weight * module.scale != 0]
    present = present or [(modules[0], 0.0)]
    strengths = [weight * module.scale for module, weight in present]
    common = strengths[0] if len(present) == 1 else max(map(abs, strengths))
    dtype = dtype or widest(modules)
    ups, downs = [], []
    for (module, _), strength in zip(present, strengths, strict=True):
        ups.append(module.B_OR.to(dtype) if strength == common else _multiplied(module.B_OR, strength / common, dtype))
        downs.append(module.A_RI.to(dtype))
    return LoraModule(torch.cat(downs), torch.cat(ups, dim=1), common)


def widest(modules: Sequence[LoraModule]) -> torch.dtype:
    """The smallest type that holds the values of all modules' files (two half types: float32)."""
    return reduce(torch.promote_types, (module.file_type for module in modules))


def spectrum(module: LoraModule) -> Spectrum:
    """Singular values and vectors of a module's change, by Gram matrices in float64 and one small SVD."""
    up_RR, down_RR = gram(module.B_OR), gram(module.A_RI.T)
    # Columns of B and rows of A are given equal norms first, so that a factor's scale cannot look like dependence.
    balance_R = (down_RR.diagonal() / up_RR.diagonal()).pow(0.25)
    balance_R = torch.where(balance_R.isfinite() & (balance_R > 0), balance_R, 1.0)
    half_up_RR, inverse_RR = _half(up_RR * balance_R * balance_R[:, None])
    half_down_RR, _ = _half(down_RR / balance_R / balance_R[:, None])
    left_RK, unscaled_K, _ = torch.linalg.svd(half_up_RR.T @ half_down_RR)
    unscaled_K = torch.where(unscaled_K > _NEGLIGIBLE * unscaled_K[0], unscaled_K, 0.0)
    left = balance_R[:, None] * (inverse_RR @ left_RK)
    return Spectrum(module, unscaled_K, left, left_RK.T @ half_up_RR.T / balance_R)


def _half(gram_RR: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix H with H·Hᵀ = gram, and (Hᵀ)⁻¹, or its pseudo-inverse where columns depend on each other.

    For a tall matrix T of this Gram matrix, T·(Hᵀ)⁻¹ is orthonormal and T = T·(Hᵀ)⁻¹·Hᵀ.
    """
    lower_RR, failed = torch.linalg.cholesky_ex(gram_RR)
    diagonal = lower_RR.diagonal()
    if not failed and diagonal.min() > _ILL_CONDITIONED * diagonal.max():
        identity = torch.eye(len(gram_RR), dtype=gram_RR.dtype)
        return lower_RR, torch.linalg.solve_triangular(lower_RR.T, identity, upper=True)
    values_R, vectors_RR = torch.linalg.eigh(gram_RR)
    roots_R = values_R.clamp_min(0).sqrt()
    kept = roots_R > _NEGLIGIBLE * roots_R.max()
    inverse_R = torch.where(kept, 1 / torch.where(kept, roots_R, 1.0), 0.0)
    return vectors_RR * torch.where(kept, roots_R, 0.0), vectors_RR * inverse_R


def _cross(first_NR: torch.Tensor, second_NS: torch.Tensor) -> torch.Tensor:
    total_RS = torch.zeros(first_NR.shape[1], second_NS.shape[1], dtype=torch.float64)
    for one, other in zip(first_NR.split(_CHUNK_ROWS), second_NS.split(_CHUNK_ROWS), strict=True):
        total_RS.addmm_(one.double().T, other.double())
    return total_RS


def _product(tall_NR: torch.Tensor, mix_RK: torch.Tensor) -> torch.Tensor:
    """tall · mix in the type of tall; for a half type in float32, which is finer than it can hold."""
    working = torch.float32 if tall_NR.dtype.itemsize < 4 else torch.float64
    mix_RK = mix_RK.to(working)
    return torch.cat([(piece.to(working) @ mix_RK).to(tall_NR.dtype) for piece in tall_NR.split(_CHUNK_ROWS)])


def _multiplied(up_OR: torch.Tensor, factor: float, dtype: torch.dtype) -> torch.Tensor:
    """up · factor in a type, rounded to it once: torch multiplies half types in float32."""
    return up_OR * factor if up_OR.dtype == dtype and dtype.itemsize < 4 else (up_OR.double() * factor).to(dtype)
