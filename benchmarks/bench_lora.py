"""Time LoRA file operations on a klein 9B LoRA (144 modules, random weights), each in a process of its own.

Reported are wall and processor seconds from input file to output file, without the imports, and the peak memory of the
whole process, which includes the libraries (PyTorch alone takes about 0.6 GB) and mapped pages. The programs are timed as
a user calls them: imports, hashing of the inputs and loading the result back through diffusers count. The comparison decomposes
the full matrices, as common tools do, for one 4096 × 4096 module and one single block; it is extrapolated by the cost
of a singular value decomposition, outputs · inputs · smaller side.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))
OPERATIONS = ("inspect", "resize", "merge", "verify")
FULL = ("module", "single_block")
PROGRAMS = {
    "inspect_lora.py": ["{folder}/a.safetensors"],
    "resize_lora.py": ["{folder}/a.safetensors", "{folder}/out.safetensors", "--rank", "32"],
    "merge_loras.py": [
        "{folder}/out.safetensors",
        *(f"{{folder}}/{name}.safetensors:{weight}" for name, weight in (("a", 0.5), ("b", 0.3), ("c", 0.2))),
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, default=None, help="where the files are made; default: a temporary folder"
    )
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--without-comparison", action="store_true", help="leave out the full decompositions (minutes)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(args.child, args.folder, args.rank, args.threads)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        args.folder = args.folder or Path(temporary)
        args.folder.mkdir(parents=True, exist_ok=True)
        operations = ("make", *OPERATIONS) + (() if args.without_comparison else FULL)
        results = {name: in_child(name, args) for name in operations if name not in FULL}
        results |= {name: as_called(name, args) for name in PROGRAMS}
        results |= {name: in_child(name, args) for name in operations if name in FULL}
    found = {"rank": args.rank, "threads": args.threads, "load": os.getloadavg()[0], "results": results}
    if not args.without_comparison:
        found["full_extrapolated_s"] = extrapolated(results)
    print(json.dumps(found, sort_keys=True) if args.json else table(found))


def in_child(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run one operation in a process of its own and add the peak memory that the system saw."""
    threads = args.threads if name in FULL else 1
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    command = [sys.executable, __file__, "--child", name, "--folder", str(args.folder)]
    command += ["--rank", str(args.rank), "--threads", str(args.threads)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{name} failed")
    found = {**json.loads(output.splitlines()[-1]), "peak_gb": usage.ru_maxrss * 1024 / 1e9}
    print(f"{name}: {found['wall_s']:.1f} s, processor {found['cpu_s']:.1f} s", file=sys.stderr)
    return found


def as_called(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """One program as a user calls it."""
    words = [word.format(folder=args.folder) for word in PROGRAMS[name]]
    started_s = time.perf_counter()
    process = subprocess.Popen([sys.executable, str(SCRIPTS / name), *words, "--json"], stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{name} failed")
    wall_s, cpu_s = time.perf_counter() - started_s, usage.ru_utime + usage.ru_stime
    print(f"{name}: {wall_s:.1f} s, processor {cpu_s:.1f} s", file=sys.stderr)
    return {"wall_s": wall_s, "cpu_s": cpu_s, "peak_gb": usage.ru_maxrss * 1024 / 1e9}


def child(name: str, folder: Path, rank: int, threads: int) -> dict[str, Any]:
    """One operation, timed after its imports."""
    action = OPERATION_OF[name](folder, rank, threads)
    wall, processor = time.perf_counter(), time.process_time()
    action()
    return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - processor}


def making(folder: Path, rank: int, threads: int) -> Callable[[], object]:
    """Write three LoRAs of random bfloat16 factors."""
    import torch

    from likeness.klein.family import KLEIN_9B, linear_shapes
    from likeness.lora.adapter import LoraModule
    from likeness.lora.operation import Operated, Operation, write_operation

    shapes = {name: shape for name, shape in linear_shapes(KLEIN_9B).items() if "transformer_blocks" in name}
    assert len(shapes) == 144

    def operation(seed: int) -> Operation:
        generator = torch.Generator().manual_seed(seed)

        def random_module(name: str) -> Operated:
            outputs, inputs = shapes[name]
            down_RI = torch.randn(rank, inputs, generator=generator).bfloat16()
            up_OR = (torch.randn(outputs, rank, generator=generator) * 0.01).bfloat16()
            return Operated(LoraModule(down_RI, up_OR, 1.0), {})

        return Operation(sorted(shapes), random_module, {})

    return lambda: [
        write_operation(folder / f"{name}.safetensors", operation(seed), {}) for seed, name in enumerate("abc")
    ]


def inspecting(folder: Path, rank: int, threads: int) -> Callable[[], object]:
    from likeness.lora.inspect import inspect_lora

    return lambda: inspect_lora(folder / "a.safetensors", threads)


def resizing(folder: Path, rank: int, threads: int) -> Callable[[], object]:
    from likeness.lora.files import open_lora
    from likeness.lora.operation import write_operation
    from likeness.lora.resize import RankRule, resize_lora

    source, target = folder / "a.safetensors", folder / "resized.safetensors"
    return lambda: write_operation(target, resize_lora(open_lora(source), RankRule(32)), {}, threads=threads)


def merging(folder: Path, rank: int, threads: int) -> Callable[[], object]:
    from likeness.lora.files import open_lora
    from likeness.lora.merge import merge_loras
    from likeness.lora.operation import write_operation

    def action() -> object:
        loras = [open_lora(folder / f"{name}.safetensors") for name in "abc"]
        return write_operation(folder / "merged.safetensors", merge_loras(loras, [0.5, 0.3, 0.2]), {}, threads=threads)

    return action


def verifying(folder: Path, rank: int, threads: int) -> Callable[[], object]:
    """Loading the resized file back through diffusers, every module compared."""
    from likeness.klein.family import KLEIN_9B
    from likeness.lora.files import verify_lora

    return lambda: verify_lora(folder / "resized.safetensors", KLEIN_9B, 144)


def decomposing(shapes: list[tuple[int, int]]) -> Callable[[Path, int, int], Callable[[], object]]:
    def prepare(folder: Path, rank: int, threads: int) -> Callable[[], object]:
        import torch

        torch.set_num_threads(threads)

        def action() -> None:
            for outputs, inputs in shapes:
                change_OI = torch.randn(outputs, rank) @ torch.randn(rank, inputs)
                torch.linalg.svd(change_OI, full_matrices=False)

        return action

    return prepare


MODULE, SINGLE_BLOCK = [(4096, 4096)], [(36864, 4096), (4096, 16384)]
OPERATION_OF = {
    "make": making,
    "inspect": inspecting,
    "resize": resizing,
    "merge": merging,
    "verify": verifying,
    "module": decomposing(MODULE),
    "single_block": decomposing(SINGLE_BLOCK),
}


def extrapolated(results: dict[str, dict[str, Any]]) -> float:
    """Processor seconds of full decompositions of all modules: 24 single blocks as measured, 8 double ones by cost."""
    from likeness.klein.family import KLEIN_9B, linear_shapes

    def cost(shape: tuple[int, int]) -> float:
        return float(shape[0]) * shape[1] * min(shape)

    double = sum(
        cost(shape) for name, shape in linear_shapes(KLEIN_9B).items() if name.startswith("transformer_blocks.")
    )
    return (
        results["module"]["cpu_s"] / cost(MODULE[0]) * double + KLEIN_9B.num_single * results["single_block"]["cpu_s"]
    )


def table(found: dict[str, Any]) -> str:
    lines = [
        f"klein 9B LoRA, 144 modules, rank {found['rank']}, bfloat16; {found['threads']} threads; load {found['load']:.1f}",
        "",
        "| operation | wall s | processor s | peak GB |",
        "|---|---|---|---|",
    ]
    for name, row in found["results"].items():
        lines.append(f"| {name} | {row['wall_s']:.1f} | {row['cpu_s']:.1f} | {row['peak_gb']:.2f} |")
    if "full_extrapolated_s" in found:
        lines.append(f"| all modules by full decomposition (extrapolated) | | {found['full_extrapolated_s']:.0f} | |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
