"""Average checkpoints, oldest first: the mean of their changes, or with --ema a post-hoc exponential moving average."""

from __future__ import annotations

from pathlib import Path

from likeness.program import finite, run, set_threads


def main() -> None:
    set_threads(1)
    from likeness.lora.program import lora_parser, show, write_result

    parser = lora_parser(__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("inputs", type=Path, nargs="+", metavar="FILE", help="oldest first")
    parser.add_argument("--ema", type=finite, metavar="DECAY", help="weight of the past at each file, 0 up to below 1")
    parser.add_argument("--rank", type=int, help="rank of the result; default: the sum of the ranks, exact")
    args = parser.parse_args()

    from likeness.lora.average import average_loras, ema_weights
    from likeness.lora.files import open_lora

    weights = None if args.ema is None else ema_weights(len(args.inputs), args.ema)
    operation = average_loras([open_lora(path, args.lokr_rank) for path in args.inputs], weights, args.rank)
    show(write_result(args, args.output, operation, args.inputs), args.json)


if __name__ == "__main__":
    run(main)
