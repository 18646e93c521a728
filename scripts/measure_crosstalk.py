"""Measure what two subjects' LoRAs do to each other before they are mixed.

Prints how far their changes of weight share directions, and what each subject's metrics lose when both LoRAs are on.
Both subjects must be configured and scored; their published LoRAs are used unless files are given.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from likeness.config.evaluation import ScoreStage
from likeness.errors import UserError, nearest
from likeness.program import read_settings, run, set_threads
from likeness.store import Store

if TYPE_CHECKING:
    from likeness.workflow import Plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs=2, required=True, metavar=("FIRST", "SECOND"), help="the two subjects")
    parser.add_argument("--loras", nargs=2, type=Path, help="their LoRA files; default: the published ones")
    parser.add_argument(
        "--method", choices=("sum", "k-lora", "masked"), default="sum", help="how both are used at once"
    )
    parser.add_argument("--folder", type=Path, default=Path(), help="the project's folder")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    files = [path.resolve() for path in args.loras or []]
    os.chdir(args.folder)

    from likeness.evaluation.draw import LoraFile
    from likeness.lora.crosstalk import mean_overlap, overlaps
    from likeness.lora.files import open_lora
    from likeness.store import sha256_of_file
    from likeness.workflow import Plan

    plan = Plan.load([], {})
    for name in args.names:
        if name not in plan.subjects:
            raise UserError(f"no subject {name!r}; {nearest(name, plan.subjects)}")
    files = files or [Path("results") / name / "lora" / f"{name}.safetensors" for name in args.names]
    for file in files:
        if not file.is_file():
            raise UserError(f"{file} is not there. Publish that subject first, or give --loras.")
    loras = [LoraFile(file, sha256_of_file(file)) for file in files]
    shared = overlaps(*(open_lora(file) for file in files))
    inputs, outputs = mean_overlap(shared)
    found: dict[str, Any] = {
        "overlap": {"inputs": inputs, "outputs": outputs, "modules": [one._asdict() for one in shared]},
        "subjects": {
            name: losses_of(plan, name, pair[0], pair[1], args)
            for name, pair in zip(args.names, (loras, loras[::-1]), strict=True)
        },
    }
    print(json.dumps(found) if args.json else described(found))


def losses_of(plan: Plan, name: str, own: Any, other: Any, args: argparse.Namespace) -> list[dict[str, Any]]:
    """What one subject loses when the other LoRA is on as well."""
    from likeness.evaluation.crosstalk import measure_crosstalk
    from likeness.evaluation.score import Workplace

    stage = read_settings(plan.score_base(SimpleNamespace(subject=name)), ScoreStage)
    set_threads(stage.evaluation.cpu_threads)
    folder = Path("results") / name
    manifests = [folder / "phases" / f"{phase}.parquet" for phase in plan.subjects[name].phases]
    images = folder / f"{plan.kind(name)}.parquet"
    workplace = Workplace(stage, folder / "phases" / "holdout.parquet", manifests, images, Store(Path(plan.store)))
    words = [plan.subjects[one].trigger for one in (name, *(each for each in args.names if each != name))]
    found = measure_crosstalk(workplace, own, other, folder / "evaluation" / "base", name, args.method, words)
    return [one._asdict() | {"difference": one.difference._asdict()} for one in found]


def described(found: dict[str, Any]) -> str:
    """The findings for people."""
    overlap = found["overlap"]
    lines = [
        f"{len(overlap['modules'])} modules in common; shared directions, weighted by energy: "
        f"inputs {overlap['inputs']:.3f}, outputs {overlap['outputs']:.3f} (0 none, 1 all)"
    ]
    for one in sorted(overlap["modules"], key=lambda one: -abs(one["cosine"]))[:5]:
        chance = max(one["inputs_by_chance"], one["outputs_by_chance"])
        lines.append(
            f"  {one['module']}: cosine {one['cosine']:+.3f}, inputs {one['inputs']:.3f}, "
            f"outputs {one['outputs']:.3f} (chance {chance:.3f})"
        )
    for name, losses in found["subjects"].items():
        lines.append(f"{name}, both LoRAs on instead of its own alone:")
        for one in losses:
            parts = one["difference"]
            interval = "" if parts["low"] is None else f" ({parts['low']:+.3f} to {parts['high']:+.3f})"
            lines.append(
                f"  {one['metric']}: {one['alone']:.3f} → {one['together']:.3f}, {parts['value']:+.3f}{interval}"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
