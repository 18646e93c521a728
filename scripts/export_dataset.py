"""Render one phase as a dataset and config for another trainer; warnings name each setting that it cannot take."""

from __future__ import annotations

from pathlib import Path

from likeness.config.exports import ExportStage
from likeness.errors import UserError
from likeness.exports.export import export_dataset
from likeness.program import parser_for, read_settings, run
from likeness.store import Store, Work


def main() -> Work:
    parser = parser_for(__doc__)
    parser.add_argument("--trainer", required=True, help="name of the trainer")
    parser.add_argument("--manifest", type=Path, required=True, help="manifest of the phase")
    parser.add_argument("--images", type=Path, required=True, help="photos or pairs table")
    parser.add_argument("--store", type=Path, required=True, help="folder of stored items")
    parser.add_argument("--output-folder", type=Path, required=True, help="folder of the export")
    args = parser.parse_args()
    stage = read_settings(args.settings, ExportStage)
    if args.trainer != stage.trainer:
        raise UserError(f"--trainer {args.trainer}: the settings are for {stage.trainer}. Give both alike.")
    store = Store(args.store)
    warnings = export_dataset(stage, args.manifest, args.images, store, args.output_folder)
    for line in warnings:
        print(f"warning: {line}")
    return store.work()


if __name__ == "__main__":
    run(main)
