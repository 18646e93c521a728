"""Draw and measure the bare base model on both halves of the grid, and calibrate the identity scale.

Writes scores.parquet and calibration.json; images/ and sheet.jpg are by-products.
"""

from __future__ import annotations

from pathlib import Path

from likeness.config.evaluation import ScoreStage
from likeness.program import parser_for, read_settings, run, set_threads
from likeness.store import Store, Work


def main() -> Work:
    parser = parser_for(__doc__)
    parser.add_argument("--holdout", type=Path, required=True)
    parser.add_argument("--manifests", type=Path, nargs="+", required=True)
    parser.add_argument("--images", type=Path, required=True, help="the subject's photos.parquet or pairs.parquet")
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--output-folder", type=Path, required=True)
    args = parser.parse_args()
    stage = read_settings(args.settings, ScoreStage)
    set_threads(stage.evaluation.cpu_threads)

    from likeness.evaluation.score import Workplace, score_base

    workplace = Workplace(stage, args.holdout, args.manifests, args.images, Store(args.store))
    score_base(workplace, args.output_folder)
    return workplace.work()


if __name__ == "__main__":
    run(main)
