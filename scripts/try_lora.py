"""Draw one image with a subject's published LoRA.

An edit also needs `--reference`: the picture to change first, then further references. With `--beside` another LoRA
is used at the same time, without a merged file.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from types import SimpleNamespace

from likeness.config.evaluation import ScoreStage
from likeness.errors import UserError, nearest
from likeness.program import finite, read_settings, run, set_threads
from likeness.store import Store, sha256_of_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="name of the subject")
    parser.add_argument("--prompt", required=True, help="may contain {trigger} and {class}")
    parser.add_argument("--scale", type=finite, default=1.0, help="strength of the LoRA; 0 draws with the bare base")
    parser.add_argument("--beside", type=Path, help="another LoRA file to use at the same time")
    parser.add_argument(
        "--method",
        choices=("sum", "k-lora", "masked"),
        default="sum",
        help="how both are used: in full, the other as the style by layer and step, or each within its subject's place",
    )
    parser.add_argument("--word", help="masked: the word in the prompt that the other LoRA belongs to")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--reference", type=Path, nargs="*", default=[], help="an edit's source and further references")
    parser.add_argument("--output", type=Path, default=None, help="PNG; default results/NAME/try.png")
    parser.add_argument("--folder", type=Path, default=Path(), help="the project's folder")
    args = parser.parse_args()
    output = args.output.resolve() if args.output else Path("results", args.name, "try.png")
    sources = [path.resolve() for path in args.reference]
    beside = args.beside.resolve() if args.beside else None
    os.chdir(args.folder)

    from likeness.evaluation.draw import LoraFile
    from likeness.evaluation.mix import Mixture
    from likeness.evaluation.once import draw_once, image_of, size_for
    from likeness.workflow import Plan

    if not args.name or not args.prompt:
        raise UserError('give NAME and PROMPT, for example: make try NAME=jane PROMPT="{trigger} {class} in a garden"')
    plan = Plan.load([], {})
    if args.name not in plan.subjects:
        raise UserError(f"no subject {args.name!r}; {nearest(args.name, plan.subjects)}")
    stage = read_settings(plan.score_base(SimpleNamespace(subject=args.name)), ScoreStage)
    set_threads(stage.evaluation.cpu_threads)
    lora = Path("results") / args.name / "lora" / f"{args.name}.safetensors"
    if args.scale and not lora.is_file():
        raise UserError(why_unpublished(args.name, lora.parent.parent / "best.json"))
    if stage.kind == "pairs" and not args.reference:
        raise UserError(f"{args.name} is an edit: give --reference with the picture to change")
    references = [image_of(path) for path in sources]
    if beside is not None and not (beside.is_file() and args.scale):
        raise UserError(f"--beside: {beside} is not there, or --scale 0 leaves nothing to put it beside")
    words = (stage.trigger, args.word) if args.word else ()
    others = [LoraFile(path, sha256_of_file(path)) for path in (beside,) if path]
    draw_once(
        stage,
        Store(Path(plan.store)),
        lora if args.scale else None,
        args.prompt,
        output,
        scale=args.scale,
        seed=args.seed,
        references=references,
        size_px=size_for(stage, references),
        mixture=Mixture(args.method, tuple(others), words) if others else None,
    )
    print(f"wrote {output}")


def why_unpublished(name: str, best: Path) -> str:
    """Why a subject has no LoRA: no run came so far, or no checkpoint was chosen."""
    try:
        chosen = json.loads(best.read_text("utf-8"))
    except FileNotFoundError:
        return f"{name} has no published LoRA yet. Run: .venv/bin/python -m snakemake --cores all {name}"
    if chosen["variant"] is None:
        reason = chosen["rule"].removeprefix("no choice: ")
        return f"{name}: no checkpoint was chosen, so no LoRA is published: {reason}. Choose one by hand with `pick:`."
    return f"{name}: the chosen LoRA is not published yet. Run: .venv/bin/python -m snakemake --cores all {name}"


if __name__ == "__main__":
    run(main)
