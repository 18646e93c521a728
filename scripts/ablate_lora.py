"""Measure which blocks of a LoRA do the work: knock-out and knock-in of every block on the select half of the grid.

Writes the table of paired differences; the sheet of the knock-outs beside it is a by-product.
"""

from __future__ import annotations

from pathlib import Path

from likeness.config.surgery import AblationStage
from likeness.program import parser_for, read_settings, run, set_threads
from likeness.store import Store, Work


def main() -> Work:
    parser = parser_for(__doc__)
    parser.add_argument("--subject", required=True)
    parser.add_argument("--parents", type=Path, nargs="*", default=[], help="steps.json or file, unless it is `best`")
    parser.add_argument("--scores", type=Path, nargs="*", default=[], help="score tables from which `best` is chosen")
    parser.add_argument("--checkpoints", type=Path, nargs="*", default=[], help="steps.json files behind them")
    parser.add_argument("--loras", type=Path, nargs="*", default=[], help="finished LoRA files behind them")
    parser.add_argument("--holdout", type=Path, required=True)
    parser.add_argument("--manifests", type=Path, nargs="+", required=True)
    parser.add_argument("--images", type=Path, required=True, help="the subject's photos.parquet or pairs.parquet")
    parser.add_argument("--base", type=Path, required=True, help="folder that score_base wrote")
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    stage = read_settings(args.settings, AblationStage)
    set_threads(stage.scoring.evaluation.cpu_threads)

    from likeness.evaluation.ablate import ablate_lora
    from likeness.evaluation.parents import Candidates, find_parents
    from likeness.evaluation.score import Workplace, loras_by_hash

    store = Store(args.store)
    candidates = Candidates(args.scores, loras_by_hash(args.checkpoints, args.loras, store))
    (parent,) = find_parents([stage.ablation.of], args.parents, candidates, stage.choice, store)
    workplace = Workplace(stage.scoring, args.holdout, args.manifests, args.images, store)
    rows = ablate_lora(workplace, stage.ablation, parent, args.base, args.subject, args.output)
    print(f"{len(rows)} differences of {parent.text}")
    return workplace.work()


if __name__ == "__main__":
    run(main)
