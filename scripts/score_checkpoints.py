"""Draw and measure every checkpoint of one variant and phase on the select half of the grid.

Writes scores.parquet; images/ and sheet.jpg are by-products.
"""

from __future__ import annotations

from pathlib import Path

from likeness.config.evaluation import ScoreStage
from likeness.program import parser_for, read_settings, run, set_threads
from likeness.store import Store, Work


def main() -> Work:
    parser = parser_for(__doc__)
    parser.add_argument("--variant", required=True)
    parser.add_argument("--phase", required=True)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--steps", type=Path, help="steps.json of a training")
    source.add_argument("--loras", type=Path, nargs="+", help="finished LoRA files")
    parser.add_argument("--holdout", type=Path, required=True)
    parser.add_argument("--manifests", type=Path, nargs="+", required=True)
    parser.add_argument("--images", type=Path, required=True, help="the subject's photos.parquet or pairs.parquet")
    parser.add_argument("--base", type=Path, required=True, help="folder that score_base wrote")
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--output-folder", type=Path, required=True)
    args = parser.parse_args()
    stage = read_settings(args.settings, ScoreStage)
    set_threads(stage.evaluation.cpu_threads)

    from likeness.evaluation.score import Workplace, entries_of_files, entries_of_steps, score_checkpoints

    store = Store(args.store)
    if args.steps:
        entries = entries_of_steps(args.variant, args.phase, args.steps, store)
    else:
        entries = entries_of_files(args.variant, args.phase, args.loras, store)
    workplace = Workplace(stage, args.holdout, args.manifests, args.images, store)
    score_checkpoints(workplace, entries, args.base, args.output_folder)
    return workplace.work()


if __name__ == "__main__":
    run(main)
