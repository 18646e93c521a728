"""Make one candidate LoRA of finished ones: resized, merged, subtracted, averaged, or with its blocks weighted.

Writes the record of the candidate; the LoRA file beside it is a by-product that the store keeps.
"""

from __future__ import annotations

from pathlib import Path

from likeness.config.surgery import SurgeryStage
from likeness.program import parser_for, read_settings, run, set_threads
from likeness.store import Store, Work


def main() -> Work:
    parser = parser_for(__doc__)
    parser.add_argument("--parents", type=Path, nargs="*", default=[], help="steps.json or file of all but `best`")
    parser.add_argument("--scores", type=Path, nargs="*", default=[], help="score tables from which `best` is chosen")
    parser.add_argument("--checkpoints", type=Path, nargs="*", default=[], help="steps.json files behind them")
    parser.add_argument("--loras", type=Path, nargs="*", default=[], help="finished LoRA files behind them")
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="record to write")
    args = parser.parse_args()
    stage = read_settings(args.settings, SurgeryStage)
    set_threads(1)

    from likeness.evaluation.parents import Candidates, find_parents
    from likeness.evaluation.score import loras_by_hash
    from likeness.evaluation.surgery import make_surgery

    store = Store(args.store)
    candidates = Candidates(args.scores, loras_by_hash(args.checkpoints, args.loras, store))
    parents = find_parents(stage.surgery.parents, args.parents, candidates, stage.choice, store)
    entry = make_surgery(stage, parents, store, args.output)
    names = ", ".join(parent.text for parent in parents)
    print(f"{entry['method']} of {names}: {entry['modules']} modules")
    return store.work()


if __name__ == "__main__":
    run(main)
