"""Measure what two LoRAs do to each other before they are mixed.

Writes how far their changes of weight share directions, module by module, and what each subject's metrics lose when both
LoRAs are on; a sheet of the images beside the tables is a by-product.
"""

from __future__ import annotations

from pathlib import Path

from likeness.config.surgery import CrosstalkStage
from likeness.program import parser_for, read_settings, run, set_threads
from likeness.store import Store, Work


def main() -> Work:
    parser = parser_for(__doc__)
    parser.add_argument(
        "--subjects", nargs="+", required=True, help="the subject, and the other one if it is a subject"
    )
    parser.add_argument("--parents", type=Path, nargs="*", default=[], help="lists or files of both LoRAs but `best`")
    parser.add_argument("--scores", type=Path, nargs="*", default=[], help="score tables from which `best` is chosen")
    parser.add_argument("--checkpoints", type=Path, nargs="*", default=[], help="steps.json files behind them")
    parser.add_argument("--loras", type=Path, nargs="*", default=[], help="finished LoRA files behind them")
    parser.add_argument("--bases", type=Path, nargs="+", required=True, help="the base's score table of each subject")
    parser.add_argument("--holdouts", type=Path, nargs="+", required=True, help="one of each subject")
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="photos or pairs table of each subject")
    parser.add_argument("--manifests", type=Path, nargs="+", required=True, help="all of the first subject")
    parser.add_argument("--other-manifests", type=Path, nargs="*", default=[], help="all of the second subject")
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--losses", type=Path, required=True, help="table of metrics to write")
    parser.add_argument("--overlaps", type=Path, required=True, help="table of modules to write")
    args = parser.parse_args()
    stage = read_settings(args.settings, CrosstalkStage)
    set_threads(stage.scorings[0].evaluation.cpu_threads)

    from likeness.evaluation.crosstalk import measure_crosstalk, sides_of
    from likeness.evaluation.parents import Candidates, find_parents
    from likeness.evaluation.score import Workplace, loras_by_hash

    store = Store(args.store)
    candidates = Candidates(args.scores, loras_by_hash(args.checkpoints, args.loras, store))
    parents = [stage.crosstalk.of, stage.crosstalk.beside]
    own, other = find_parents(parents, args.parents, candidates, stage.choice, store)
    tables = zip(args.holdouts, (args.manifests, args.other_manifests), args.images, strict=False)
    workplaces = [Workplace(scoring, *paths, store) for scoring, paths in zip(stage.scorings, tables, strict=True)]
    folders = [path.parent for path in args.bases]
    sides = sides_of(stage.crosstalk, (own, other), args.subjects, workplaces, folders)
    rows = measure_crosstalk(args.losses.parent.name, stage.crosstalk, sides, args.losses, args.overlaps)
    print(f"{len(rows)} losses of {own.text} beside {other.text}")
    return store.work(sum(workplace.models_loaded for workplace in workplaces))


if __name__ == "__main__":
    run(main)
