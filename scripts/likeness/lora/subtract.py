"""Taking a background LoRA out of a full one: exactly as a difference, or by projection.

The difference W − α·W_background is exact, as factors side by side. It only helps where the two trainings learned the
background alike. The projection is better posed: it takes from W, at strength α, all that reads the input directions
which the background LoRA reads most, W − α·W·V·Vᵀ with V the first right singular vectors of W_background, whatever
the background LoRA makes of them; the rank does not grow.

Axes: R rank, I inputs, O outputs, K directions.
"""

from __future__ import annotations

import torch

from likeness.errors import UserError
from likeness.lora.adapter import Lora, LoraModule
from likeness.lora.factors import energy, spectrum, weighted_sum
from likeness.lora.operation import Operated, Operation, check_alike, united


def subtract_lora(full: Lora, background: Lora, alpha: float) -> Operation:
    """W − alpha · W_background, module by module; a module that only one of them adapts is kept or negated.

    alpha is usually 0 to 1; at 0 the full LoRA stays bit for bit. Rows give the Frobenius norm of the change before and
    after. UserError for LoRAs of different base models, when the module is made.
    """
    _check_alpha(alpha)

    def operate(name: str) -> Operated:
        present = [
            (lora.modules[name], weight) for lora, weight in ((full, 1.0), (background, -alpha)) if name in lora.modules
        ]
        modules = [module for module, _ in present]
        check_alike(name, modules)
        difference = weighted_sum(modules, [weight for _, weight in present])
        return Operated(difference, _norms(full, name, difference))

    names = united([full, background]) if alpha else sorted(full.modules)
    return Operation(names, operate, {"operation": "subtract", "alpha": f"{alpha:g}"})


def project_out(full: Lora, background: Lora, rank: int, alpha: float = 1.0) -> Operation:
    """W − alpha · W · V · Vᵀ, with V the `rank` input directions that the background LoRA reads most.

    At alpha 1 nothing of those directions is left in the change. Modules that only the background adapts stay without
    change; those that only the full LoRA adapts stay as they are.
    """
    _check_alpha(alpha)
    if rank < 1:
        raise UserError(f"project: {rank} is not allowed; at least 1 direction must be projected out.")

    def operate(name: str) -> Operated:
        module = full.modules[name]
        if name not in background.modules:
            return Operated(module, _norms(full, name, module))
        check_alike(name, [module, background.modules[name]])
        directions_KI = input_directions(background.modules[name], rank)
        down_RI = module.A_RI.double()
        rest_RI = down_RI - alpha * (down_RI @ directions_KI.T) @ directions_KI
        projected = module._replace(A_RI=rest_RI.to(module.A_RI.dtype))
        return Operated(projected, _norms(full, name, projected))

    about = {"operation": "project", "alpha": f"{alpha:g}", "rank": str(rank)}
    return Operation(sorted(full.modules), operate, about)


def input_directions(module: LoraModule, rank: int) -> torch.Tensor:
    """The first right singular vectors of a module's change, directions_KI, orthonormal rows in float64.

    At most `rank`, and no more than the change truly has; none where it is zero.
    """
    found = spectrum(module)
    count = min(rank, int((found.unscaled_K > 0).sum()))
    rows_KI = found.right_KR[:count] @ module.A_RI.double()
    return rows_KI / found.unscaled_K[:count, None]


def _norms(full: Lora, name: str, result: LoraModule) -> dict[str, object]:
    before = full.modules.get(name)
    parts = {"rank_before": before.rank if before else 0, "rank_after": result.rank}
    norms = {"norm_before": energy(before) ** 0.5 if before else 0.0, "norm_after": energy(result) ** 0.5}
    return {**parts, **norms}


def _check_alpha(alpha: float) -> None:
    if not abs(alpha) < float("inf"):
        raise UserError(f"alpha: {alpha!r} is not a number; 0 (nothing) to 1 (all of the background) are usual.")
