"""The resume state as bytes: adapter weights, their average and the optimizer, exactly as they were.

There is nothing else: the position is the number of completed steps, and order, noise and learning rate are functions
of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from safetensors.torch import load, save

from likeness.training.ema import Ema

ADAPTER, AVERAGE, OPTIMIZER, GROUPS = "adapter", "average", "optimizer", "groups"
Scalars = dict[str, int | float | str | bool]


def pack_state(
    weights: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer, ema: Ema | None = None
) -> tuple[bytes, Scalars]:
    """Write adapter, average and optimizer as safetensors bytes, and the optimizer's plain numbers beside them."""
    tensors: dict[str, torch.Tensor] = {f"{ADAPTER}/{name}": weight for name, weight in weights.items()}
    if ema is not None:
        tensors |= {f"{AVERAGE}/{name}": weight for name, weight in ema.weights.items()}
    scalars: Scalars = {}
    numbers = {str(place): moved_numbers(group, optimizer) for place, group in enumerate(optimizer.param_groups)}
    for path, value in [
        *leaves(optimizer.state_dict()["state"], OPTIMIZER),
        *leaves(numbers, GROUPS),
    ]:
        if isinstance(value, torch.Tensor):
            tensors[path] = value
        else:
            scalars[path] = value
    # Quantised optimizers share lookup tables between weights; safetensors wants every tensor to own its memory.
    return save({key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}), scalars


def moved_numbers(group: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Numbers that an optimizer keeps in its group and that moved since it was made, such as Prodigy's distance."""
    found = {}
    for name, value in group.items():
        if name != "lr" and isinstance(value, bool | int | float | torch.Tensor):
            default = optimizer.defaults.get(name)
            if isinstance(value, torch.Tensor) or type(value) is not type(default) or value != default:
                found[name] = value
    return found


@torch.no_grad()
def unpack_state(
    data: bytes,
    scalars: Mapping[str, Any],
    weights: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    ema: Ema | None = None,
) -> None:
    """Put what `pack_state` wrote back into its place; the optimizer's own settings stay."""
    state: dict[int, dict[str, Any]] = {}
    groups = optimizer.state_dict()["param_groups"]
    for key, value in [*load(data).items(), *scalars.items()]:
        kind, *path = key.split("/")
        if kind == ADAPTER:
            weights[path[0]].copy_(value)
        elif kind == AVERAGE:
            assert ema is not None
            ema.weights[path[0]].copy_(value)
        elif kind == GROUPS:
            groups[int(path[0])][path[1]] = value
        else:
            inner = state.setdefault(int(path[0]), {})
            for name in path[1:-1]:
                inner = inner.setdefault(name, {})
            inner[path[-1]] = value
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def leaves(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The values of nested dictionaries by their path: quantised optimizers nest theirs."""
    if not isinstance(tree, dict):
        yield path, tree
        return
    for name, value in tree.items():
        yield from leaves(value, f"{path}/{name}")
