"""The resume state as bytes: adapter weights and optimizer, exactly as they were.

There is nothing else: the position is the number of completed steps, and order, noise and learning rate are functions
of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from safetensors.torch import load, save

ADAPTER, OPTIMIZER = "adapter", "optimizer"
Scalars = dict[str, int | float | str | bool]


def pack_state(weights: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer) -> tuple[bytes, Scalars]:
    """Write adapter and optimizer as safetensors bytes, and the optimizer's plain numbers beside them."""
    tensors: dict[str, torch.Tensor] = {f"{ADAPTER}/{name}": weight for name, weight in weights.items()}
    scalars: Scalars = {}
    for path, value in leaves(optimizer.state_dict()["state"], OPTIMIZER):
        if isinstance(value, torch.Tensor):
            tensors[path] = value
        else:
            scalars[path] = value
    # Quantised optimizers share lookup tables between weights; safetensors wants every tensor to own its memory.
    return save({key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}), scalars


@torch.no_grad()
def unpack_state(
    data: bytes,
    scalars: Mapping[str, Any],
    weights: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Put what `pack_state` wrote back into the adapter and the optimizer; the optimizer's own settings stay."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in [*load(data).items(), *scalars.items()]:
        kind, *path = key.split("/")
        if kind == ADAPTER:
            weights[path[0]].copy_(value)
            continue
        inner = state.setdefault(int(path[0]), {})
        for name in path[1:-1]:
            inner = inner.setdefault(name, {})
        inner[path[-1]] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def leaves(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The values of nested dictionaries by their path: quantised optimizers nest theirs."""
    if not isinstance(tree, dict):
        yield path, tree
        return
    for name, value in tree.items():
        yield from leaves(value, f"{path}/{name}")
