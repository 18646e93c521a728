"""A LoRA that is made of others, one module at a time: described first, computed while it is written.

Every operation on LoRA files (resize, merge, subtract, average) is an Operation: the names of the result's modules and
a pure function that makes one of them. So memory holds one module a thread, and results do not depend on how many
threads there are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from likeness.errors import UserError
from likeness.lora.adapter import Lora, LoraModule
from likeness.lora.files import adapter_metadata, module_keys
from likeness.lora.stream import write_stream

_ROUNDING = 1e-6


class Operated(NamedTuple):
    """One module of a result, and what is to be said of it: the columns of its row in the operation's table."""

    module: LoraModule
    row: Mapping[str, Any]


class Written(NamedTuple):
    """A written result: the file's sha256, one row a module, its name in the column 'module', and what to warn of."""

    sha256: str
    rows: list[dict[str, Any]]
    warnings: Sequence[str] = ()


@dataclass(frozen=True)
class Operation:
    """Modules of a LoRA to be made, in order, and the pure function that makes one; `about` says how, for provenance."""

    names: Sequence[str]
    operate: Callable[[str], Operated]
    about: Mapping[str, str]

    def lora(self) -> Lora:
        """The result in memory."""
        return Lora({name: self.operate(name).module for name in self.names})

    def rows(self) -> list[dict[str, Any]]:
        """The table alone: nothing is kept or written."""
        return [{"module": name, **self.operate(name).row} for name in self.names]


def write_operation(
    path: Path,
    operation: Operation,
    provenance: Mapping[str, str],
    dtype: torch.dtype | None = None,
    threads: int = 1,
    check: Callable[[Path], object] | None = None,
) -> Written:
    """Compute an operation and write its result in diffusers' layout, with the adapter's config, as it is computed.

    `dtype` is the type of the file, else each module keeps its own. `threads` modules are computed at once, each on one
    core; the bytes are the same for any number. `check` is given the finished file before it takes its place. UserError
    where the result has no module, changes nothing, or holds values that the type does not.
    """
    if not operation.names:
        raise UserError(f"{path}: the result would hold no module.")
    rows: list[dict[str, Any]] = []
    stubs: dict[str, LoraModule] = {}
    changing: list[str] = []
    lost: list[str] = []

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        names = sorted(operation.names, key=module_keys)
        results = in_order(operation.operate, names, threads)
        for name, (module, row) in tqdm(zip(names, results, strict=True), total=len(names), disable=None, leave=False):
            kept = narrowed(module, dtype, f"{path}: {name!r}")
            rows.append({"module": name, **row})
            stubs[name] = LoraModule(kept.A_RI.to("meta"), kept.B_OR.to("meta"), kept.scale)
            if changes_something(kept):
                changing.append(name)
            elif changes_something(module):
                lost.append(name)
            yield from zip(module_keys(name), kept[:2], strict=True)
        check_change(path, changing, lost, dtype)

    about = {**operation.about, **provenance}
    room = room_for_header([key for name in operation.names for key in module_keys(name)], about)
    metadata = lambda: {**about, **adapter_metadata(Lora(dict(sorted(stubs.items()))))}  # noqa: E731
    sha256 = write_stream(path, tensors(), metadata, room, check=check)
    return Written(sha256, sorted(rows, key=lambda row: row["module"]), loss_warnings(lost, dtype))


def narrowed(module: LoraModule, dtype: torch.dtype | None, where: str) -> LoraModule:
    """A module in the type of a file; UserError where its values are beyond what that type holds, or are no numbers."""
    kept = module.cast(dtype)
    if is_finite(kept):
        return kept
    if is_finite(module):
        largest, title = max(float(factor.abs().max()) for factor in module[:2]), _title(kept.file_type)
        raise UserError(
            f"{where} has values up to {largest:.3g}, but {title} ends at {torch.finfo(kept.file_type).max:.3g}. Write it "
            "with another --type: bfloat16 and float32 hold them."
        )
    raise UserError(
        f"{where} of the result has values that {_title(module.A_RI.dtype)} does not hold. Write the inputs in a wider "
        "type first: scripts/convert_lora.py IN OUT --format diffusers --type float32"
    )


def is_finite(module: LoraModule) -> bool:
    """Whether all values of both factors are numbers."""
    extremes = [torch.stack(torch.aminmax(factor)) for factor in module[:2] if factor.numel()]
    return all(bool(torch.isfinite(extreme).all()) for extreme in extremes)


def check_change(path: Path, changing: Sequence[str], lost: Sequence[str], dtype: torch.dtype | None) -> None:
    """UserError where no module changes anything: all were zero, or became so in the file's type."""
    if changing:
        return
    if lost:
        raise UserError(
            f"{path} would change nothing: all its values are too small for {_title(dtype)} and become zero. Write it with "
            "another --type: bfloat16 and float32 hold them."
        )
    raise UserError(f"{path} would change nothing: every module of the result is zero, or its parts cancel each other.")


def loss_warnings(lost: Sequence[str], dtype: torch.dtype | None) -> list[str]:
    """A warning that names the modules which became zero in the file's type; none where there are none."""
    if not lost:
        return []
    return [
        f"{len(lost)} modules are too small for {_title(dtype)} and became zero: {', '.join(lost)}. Write them with another "
        "--type: bfloat16 and float32 hold them."
    ]


def _title(dtype: torch.dtype | None) -> str:
    return str(dtype or "the file's type").removeprefix("torch.")


def room_for_header(keys: Sequence[str], about: Mapping[str, str]) -> int:
    """Bytes that a header surely fits into, a multiple of 8: depends on names and provenance only, not on the values.

    An entry has a key, a type, two sizes and two positions; a module's name stands in the adapter's config up to three
    times, with its dots escaped twice where it has a rank or an alpha of its own.
    """
    entries = sum(len(key) + 120 for key in keys)
    config = sum(6 * len(key) for key in keys)
    told = sum(2 * (len(key) + len(text)) + 8 for key, text in about.items())
    return 8 * ((1024 + entries + config + told) // 8)


def changes_something(module: LoraModule) -> bool:
    """Whether a module's change is more than rounding: its output for one random input against its parts' outputs."""
    probe_I = torch.randn(module.A_RI.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    up_OR, hidden_R = module.B_OR.double(), module.A_RI.double() @ probe_I
    parts = (up_OR.square().sum(0) * hidden_R.square()).sum().sqrt()
    return module.scale != 0 and bool((up_OR @ hidden_R).norm() > _ROUNDING * parts)


def in_order(function: Callable[[str], Any], names: Sequence[str], threads: int) -> Iterator[Any]:
    """Results of a function for each name, in their order; a few are computed ahead in threads of one core each."""
    if threads <= 1:
        yield from map(function, names)
        return
    with ThreadPoolExecutor(threads, initializer=lambda: torch.set_num_threads(1)) as pool:
        ahead: deque[Future[Any]] = deque()
        for name in names:
            ahead.append(pool.submit(function, name))
            if len(ahead) > threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def united(loras: Sequence[Lora]) -> list[str]:
    """Names of all modules that any of the LoRAs adapts, sorted."""
    return sorted({name for lora in loras for name in lora.modules})


def check_alike(name: str, modules: Sequence[LoraModule]) -> None:
    """UserError where modules of one name have other shapes: their LoRAs belong to different base models."""
    shapes = [(module.B_OR.shape[0], module.A_RI.shape[1]) for module in modules]
    if len(set(shapes)) > 1:
        found = " and ".join(str(shape) for shape in dict.fromkeys(shapes))
        raise UserError(
            f"{name!r} is (outputs, inputs) {found}: these LoRAs were trained for different base models and cannot be "
            "combined."
        )
