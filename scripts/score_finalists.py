"""Draw and measure the finalists: over strengths on the select half, and on the report half, which no choice has seen.

Writes scores.parquet; images/ and sheet.jpg are by-products.
"""

from __future__ import annotations

from pathlib import Path

from likeness.config.evaluation import ChoiceStage, ScoreStage
from likeness.program import parser_for, read_settings, run, set_threads
from likeness.store import Store, Work


def main() -> Work:
    parser = parser_for(__doc__)
    parser.add_argument("--scores", type=Path, nargs="+", required=True)
    parser.add_argument("--checkpoints", type=Path, nargs="*", default=[], help="steps.json files of all trainings")
    parser.add_argument("--loras", type=Path, nargs="*", default=[], help="finished LoRA files of external variants")
    parser.add_argument("--holdout", type=Path, required=True)
    parser.add_argument("--manifests", type=Path, nargs="+", required=True)
    parser.add_argument("--images", type=Path, required=True, help="the subject's photos.parquet or pairs.parquet")
    parser.add_argument("--base", type=Path, required=True, help="folder that score_base wrote")
    parser.add_argument("--choice", required=True, help="JSON of the choice, shaped as --settings")
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--output-folder", type=Path, required=True)
    args = parser.parse_args()
    stage = read_settings(args.settings, ScoreStage)
    choice = read_settings(args.choice, ChoiceStage)
    set_threads(stage.evaluation.cpu_threads)

    from likeness.evaluation.score import Workplace, loras_by_hash, score_finalists

    store = Store(args.store)
    workplace = Workplace(stage, args.holdout, args.manifests, args.images, store)
    loras = loras_by_hash(args.checkpoints, args.loras, store)
    score_finalists(workplace, choice, args.scores, loras, args.base, args.output_folder)
    return workplace.work()


if __name__ == "__main__":
    run(main)
