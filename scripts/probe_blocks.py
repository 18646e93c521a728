"""Find out without training which blocks of a subject's base model take content and which take style from the prompt.

Each block alone gets another prompt's text: one that changes what is shown, one that changes how it is shown.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from types import SimpleNamespace

from likeness.config.evaluation import ScoreStage
from likeness.errors import UserError, nearest
from likeness.program import read_settings, run, set_threads
from likeness.store import Store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="a subject, whose base model and evaluation settings are used")
    parser.add_argument("--prompt", required=True, help="the prompt to start from, such as 'a photo of a dog'")
    parser.add_argument("--content", required=True, help="the same with other content: 'a photo of a ship'")
    parser.add_argument("--style", required=True, help="the same in another style: 'an etching of a dog'")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--folder", type=Path, default=Path(), help="the project's folder")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    os.chdir(args.folder)

    from likeness.workflow import Plan

    plan = Plan.load([], {})
    if args.name not in plan.subjects:
        raise UserError(f"no subject {args.name!r}; {nearest(args.name, plan.subjects)}")
    stage = read_settings(plan.score_base(SimpleNamespace(subject=args.name)), ScoreStage)
    set_threads(stage.evaluation.cpu_threads)

    from likeness.evaluation.probe import probe_blocks, split_by_swaps

    store = Store(Path(plan.store))
    content, style = (
        probe_blocks(stage, store, args.prompt, other, args.seeds) for other in (args.content, args.style)
    )
    split = split_by_swaps(content, style)
    if args.json:
        roles = {"content": [role._asdict() for role in content], "style": [role._asdict() for role in style]}
        print(json.dumps({"roles": roles, **split}))
        return
    print(f"{'block':<12}{'content':>10}{'style':>10}   how far the picture goes to the other prompt, 0 to 1")
    for ours, theirs in zip(content, style, strict=True):
        shown = [role.change if role.clip is None else role.clip for role in (ours, theirs)]
        print(f"{ours.block:<12}{shown[0]:>10.3f}{shown[1]:>10.3f}")
    print(f"content_blocks: {json.dumps(split['content_blocks'])}\nstyle_blocks: {json.dumps(split['style_blocks'])}")


if __name__ == "__main__":
    run(main)
