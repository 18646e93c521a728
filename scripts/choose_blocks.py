"""Take from an ablation's table what a next training needs: `targets:`, or B-LoRA's content and style blocks.

Example: choose_blocks.py results/jane/ablation/best.parquet --metric likeness --most 8
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from likeness.errors import UserError
from likeness.program import run
from likeness.tables import read_rows
from likeness.tables_surgery import ABLATION


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="results/<subject>/ablation/<name>.parquet")
    parser.add_argument("--metric", help="metric by which blocks are chosen as targets")
    parser.add_argument("--most", type=int, default=8, help="largest number of blocks to choose")
    parser.add_argument("--content", help="metric that content blocks lose, such as likeness")
    parser.add_argument("--style", help="metric that style blocks lose, such as style_similarity")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    if not args.metric and not (args.content and args.style):
        raise UserError("give --metric for targets, or --content and --style for B-LoRA's two groups of blocks")

    from likeness.evaluation.blocks import chosen_targets, split_roles

    rows = read_rows(args.table, ABLATION)
    found: dict[str, object] = {}
    if args.metric:
        found["targets"] = chosen_targets(rows, args.metric, args.most)
    if args.content and args.style:
        split = split_roles(rows, args.content, args.style)
        found |= {"content_blocks": split.content, "style_blocks": split.style, "rest": split.rest}
    if args.json:
        print(json.dumps(found))
    else:
        print(
            "\n".join(
                f"{key}: {value if isinstance(value, str) else json.dumps(value)}" for key, value in found.items()
            )
        )


if __name__ == "__main__":
    run(main)
