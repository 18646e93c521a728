"""Train one variant and phase with another trainer's own command, or take its LoRAs from the store where it has ended.

The trainer gets the rendered dataset in a folder of its own, which stays until it has ended, so that a run that was
interrupted goes on where the trainer can. Its LoRA files are converted and become checkpoints like any other.
"""

from __future__ import annotations

from pathlib import Path

from likeness.config.exports import ExternalStage
from likeness.program import parser_for, read_settings, run
from likeness.store import Store, Work
from likeness.training.external import train_external


def main() -> Work:
    parser = parser_for(__doc__)
    parser.add_argument("--manifest", type=Path, required=True, help="phases/<phase>.parquet")
    parser.add_argument("--images", type=Path, required=True, help="photos or pairs table")
    parser.add_argument("--store", type=Path, required=True, help="folder of stored items")
    parser.add_argument("--output-folder", type=Path, required=True, help="train/<variant>/<phase>")
    args = parser.parse_args()
    stage = read_settings(args.settings, ExternalStage)
    store = Store(args.store)
    train_external(stage, args.manifest, args.images, store, args.output_folder)
    return store.work()


if __name__ == "__main__":
    run(main)
