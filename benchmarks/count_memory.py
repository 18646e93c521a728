"""Count what one training step of klein 4B and 9B holds at most, without a GPU: all storages that live at one time.

The trainer's own adapter, stored base, recomputation and loss run on tensors without values. Attention is stood in by one
that keeps what a fused kernel keeps: its inputs, its output and one number a query. Workspaces of kernels and gaps of the
allocator are not counted, so a GPU takes somewhat more; `scripts/bench_training.py` measures it.
"""

from __future__ import annotations

import argparse
import json
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from likeness.klein.family import layout_of
from likeness.training import bench, frozen
from likeness.training.adapter import add_adapter
from likeness.training.loop import Training, draw_samples, look
from likeness.training.losses.velocity import weighted_error

META = torch.device("meta")
GIB = 2**30
WAYS: tuple[dict[str, Any], ...] = ({}, {"recomputed": True})


class FusedAttention(torch.autograd.Function):
    """What a fused kernel keeps, and makes, of an attention; no values."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        output = torch.empty_like(query)
        sums = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, output, sums)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value, *_ = ctx.saved_tensors
        summed = torch.empty(query.shape, dtype=torch.float32, device=query.device)
        return torch.empty_like(summed, dtype=query.dtype), torch.empty_like(key), torch.empty_like(value)


class LiveStorages(TorchDispatchMode):
    """Adds up the bytes of every storage from its first tensor to its last."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0

    def see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.forget, key)

    def forget(self, key: int) -> None:
        self.now -= self.sizes.pop(key, 0)

    def __torch_dispatch__(self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, torch.Tensor):
                self.see(value)
        return result


def training_of(case: bench.Case) -> Training:
    """A training of the case's size whose model and adapter have no values."""
    model = bench.MODELS[case.model]
    layout = layout_of(model.config)
    transformer = bench.random_transformer(model, META, META)
    weights = add_adapter(transformer, case.settings, layout)
    if case.settings.base_precision != "full":
        frozen.quantise(transformer, case.settings.base_precision)
    optimizer: Any = None
    data = bench.random_data(case, META)
    return Training(transformer, weights, optimizer, data, case.settings, bench.SCHEDULER, layout)


def count(case: bench.Case) -> dict[str, float]:
    """GiB that stay (base, adapter, its two moments), and the most that one step's two passes hold beside them."""
    training = training_of(case)
    live = LiveStorages()
    moments = [torch.zeros_like(weight) for weight in training.weights.values() for _ in range(2)]
    for tensor in [*training.transformer.parameters(), *training.transformer.buffers(), *moments]:
        live.see(tensor)
    stays = live.now
    name = next(iter(training.data.samples))
    ((draw,),) = draw_samples(training, [[name]])
    attention = mock.patch.object(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda query, key, value, **_: FusedAttention.apply(query, key, value),
    )
    with attention, mock.patch.object(frozen, "multiply", product_without_values), live:
        seen = look(training, [name], [draw])
        weighted_error(seen.predicted_BLC, seen.target_BLC, seen.batch.weights_BL).sum().backward()
    return {"stays_gib": stays / GIB, "peak_gib": live.peak / GIB}


def product_without_values(
    left_MI: torch.Tensor, scale_M1: Any, right_IO: torch.Tensor, scale_O: Any, output_dtype: torch.dtype
) -> torch.Tensor:
    """The output of a product in float8, which no tensor without values knows."""
    return torch.empty(left_MI.shape[0], right_IO.shape[1], dtype=output_dtype, device=META)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("4b", "9b"), nargs="*", default=["4b", "9b"])
    parser.add_argument("--resolution", type=int, default=1024, help="side of the square target in px")
    parser.add_argument("--references", type=int, choices=range(5), default=0)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    print("model\tbase\tblocks\tstays GiB\tpeak GiB")
    for model in args.model:
        for precision in ("bf16", "int8", "fp8"):
            for way in WAYS:
                case = bench.Case(model, args.resolution, args.references, precision=precision, rank=args.rank, **way)
                found = count(case)
                rows.append({"model": model, "base": precision, **way, **found})
                blocks = "recomputed" if case.recomputed else "kept"
                print(f"{model}\t{precision}\t{blocks}\t{found['stays_gib']:.2f}\t{found['peak_gib']:.2f}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
