"""Merge LoRAs given as FILE:WEIGHT: their exact weighted sum, or TIES, DARE or magnitude pruning.

The sum is exact and has the sum of the ranks, unless --rank cuts it. The other methods build every change in full, take
minutes for klein 9B, and keep the part of the energy that the table says.
"""

from __future__ import annotations

from pathlib import Path

from likeness.program import finite, run, set_threads


def main() -> None:
    set_threads(1)
    from likeness.lora.program import lora_parser, show, weighted_path, write_result

    parser = lora_parser(__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("inputs", nargs="+", metavar="FILE:WEIGHT")
    parser.add_argument("--method", choices=("sum", "ties", "dare", "magnitude"), default="sum")
    parser.add_argument("--density", type=finite, help="part of the elements that TIES, DARE and magnitude keep")
    parser.add_argument("--convention", choices=("peft", "mergekit"), help="whose TIES; needed for ties")
    parser.add_argument("--rank", type=int, help="rank of the result; default: the sum of the ranks")
    parser.add_argument("--seed", type=int, default=0, help="seed of DARE")
    args = parser.parse_args()

    from likeness.lora.files import open_lora
    from likeness.lora.merge import MergeRule, merge_loras

    inputs = [weighted_path(text) for text in args.inputs]
    rule = MergeRule(args.method, args.rank, args.density, args.convention, args.seed)
    loras = [open_lora(path, args.lokr_rank) for path, _ in inputs]
    operation = merge_loras(loras, [weight for _, weight in inputs], rule)
    show(write_result(args, args.output, operation, [path for path, _ in inputs]), args.json)


if __name__ == "__main__":
    run(main)
