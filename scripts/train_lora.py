"""Train the LoRA of one variant and phase, or take it from the store where it is already trained.

Killed at any moment and run again, it ends with the same bytes as if it had not been.
"""

from __future__ import annotations

import logging
from pathlib import Path

from likeness.config.training import TrainStage
from likeness.program import parser_for, read_settings, run, set_threads
from likeness.store import Work


def main() -> Work:
    parser = parser_for(__doc__)
    parser.add_argument("--manifest", type=Path, required=True, help="phases/<phase>.parquet")
    parser.add_argument("--encoded", type=Path, required=True, help="encoded/<variant>/<phase>.parquet")
    parser.add_argument("--previous", type=Path, help="steps.json of the phase before, for init: previous")
    parser.add_argument("--ablation", type=Path, help="ablation/<name>.parquet, where training.targets_from reads it")
    parser.add_argument("--store", type=Path, required=True, help="folder of stored items")
    parser.add_argument("--output-folder", type=Path, required=True, help="train/<variant>/<phase>")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    stage = read_settings(args.settings, TrainStage)
    set_threads(stage.training.cpu_threads)

    from likeness.store import Store
    from likeness.training.targets import with_targets
    from likeness.training.train import STEPS, train_lora

    stage = stage.model_copy(update={"training": with_targets(stage.training, args.ablation)})

    outcome = train_lora(stage, args.manifest, args.encoded, args.previous, Store(args.store), args.output_folder)
    return Work({STEPS: outcome.computed}, {STEPS: outcome.reused}, outcome.models_loaded)


if __name__ == "__main__":
    run(main)
