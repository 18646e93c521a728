"""How much two LoRAs get into each other's way, from their weights alone: shared directions, module by module.

Two LoRAs that read the same input directions react to the same features, and two that write the same output directions
change the same features; their sum is harmless where both overlaps are those of chance.

Axes: K directions, I inputs, O outputs.
"""

from __future__ import annotations

from typing import NamedTuple

from likeness.lora.adapter import Lora, LoraModule
from likeness.lora.factors import energy, inner
from likeness.lora.operation import check_alike
from likeness.lora.subtract import input_directions

_ALL = 4096


class Overlap(NamedTuple):
    """One module that both adapt. Overlaps are 0 (orthogonal) to 1 (the smaller subspace lies in the larger one).

    `inputs` and `outputs` are the mean squared cosines of the principal angles between what both read and write;
    the chance values are those of random subspaces of the same sizes. `cosine` is that of the two changes of weight,
    -1 to 1; `energy` is the smaller of both squared norms, by which modules can be weighted.
    """

    module: str
    inputs: float
    inputs_by_chance: float
    outputs: float
    outputs_by_chance: float
    cosine: float
    energy: float


def overlaps(first: Lora, second: Lora) -> list[Overlap]:
    """Overlaps of all modules that both adapt and that change something, by name. UserError for different models."""
    found = []
    for name in sorted(first.modules.keys() & second.modules.keys()):
        pair = first.modules[name], second.modules[name]
        check_alike(name, pair)
        energies = [energy(module) for module in pair]
        if all(energies):
            inputs, inputs_by_chance = shared_directions(*pair)
            outputs, outputs_by_chance = shared_directions(*map(transposed, pair))
            cosine = inner(*pair) / (energies[0] * energies[1]) ** 0.5
            found.append(Overlap(name, inputs, inputs_by_chance, outputs, outputs_by_chance, cosine, min(energies)))
    return found


def shared_directions(first: LoraModule, second: LoraModule) -> tuple[float, float]:
    """Mean squared cosine of the principal angles between both input subspaces, and what chance would give."""
    ours_KI, theirs_KI = input_directions(first, _ALL), input_directions(second, _ALL)
    smaller, larger = sorted((len(ours_KI), len(theirs_KI)))
    shared = float((ours_KI @ theirs_KI.T).square().sum()) / smaller
    return min(1.0, shared), larger / ours_KI.shape[1]


def transposed(module: LoraModule) -> LoraModule:
    """The transposed change of weight: what was written becomes what is read."""
    return LoraModule(module.B_OR.T, module.A_RI.T, module.scale)
