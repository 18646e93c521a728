"""Give a LoRA a lower rank: for every module the best change of the rank that its own singular values ask for."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from likeness.errors import UserError
from likeness.program import finite, run, set_threads


def main() -> None:
    set_threads(1)
    from likeness.lora.program import lora_parser, show, write_result

    parser = lora_parser(__doc__)
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--rank", type=int, required=True, help="the rank, or with a criterion the highest rank")
    criterion = parser.add_mutually_exclusive_group()
    criterion.add_argument("--ratio", type=finite, help="keep singular values down to the largest over this, 1 or more")
    criterion.add_argument("--frobenius", type=finite, help="keep this part of the Frobenius norm, up to 1")
    criterion.add_argument("--cumulative", type=finite, help="keep this part of the sum of singular values, up to 1")
    parser.add_argument("--rule", choices=("minimal", "kohya"), help="kohya keeps one more; default minimal")
    args = parser.parse_args()

    from likeness.lora.files import open_lora
    from likeness.lora.resize import Criterion, RankRule, low_ranks, resize_lora

    given = {
        name: getattr(args, name) for name in ("ratio", "frobenius", "cumulative") if getattr(args, name) is not None
    }
    if args.rule and not given:
        raise UserError("--rule counts singular values for --ratio, --frobenius or --cumulative: give one of them.")
    name, threshold = next(iter(given.items()), ("fixed", None))
    rule = RankRule(args.rank, cast(Criterion, name), threshold, args.rule or "minimal")
    operation = resize_lora(open_lora(args.input, args.lokr_rank), rule)
    found = write_result(args, args.output, operation, [args.input])
    show({**found, "warnings": [*found["warnings"], *low_ranks(found["modules"])]}, args.json)


if __name__ == "__main__":
    run(main)
