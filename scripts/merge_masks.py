"""Join the shards' masks and put those of the subject's face beside the results."""

from __future__ import annotations

from pathlib import Path

from likeness.config.masks import MaskStage
from likeness.program import as_about, parser_for, read_settings, run, set_threads
from likeness.store import Work


def main() -> Work:
    parser = parser_for(__doc__)
    parser.add_argument("--tables", type=Path, nargs="+", required=True, help="masks tables of all shards")
    parser.add_argument("--faces", type=Path, required=True, help="merged faces table")
    parser.add_argument("--store", type=Path, required=True, help="folder of the item store")
    parser.add_argument("--masks", type=Path, required=True, help="folder of the masks for people")
    parser.add_argument("--output", type=Path, required=True, help="merged masks table to write")
    args = parser.parse_args()
    stage = read_settings(args.settings, MaskStage)
    set_threads(stage.cpu_threads)

    from likeness.faces.by_products import restore_folder
    from likeness.masks.merge import VERSION, mask_files
    from likeness.store import Store
    from likeness.tables import FACES, MASKS, merge_tables, read_rows, write_table

    store = Store(args.store)
    merged = merge_tables(args.tables, MASKS)
    files = mask_files(merged.to_pylist(), read_rows(args.faces, FACES))
    restore_folder(store, args.masks, files)
    write_table(args.output, MASKS, merged, as_about("masks", VERSION, stage))
    print(f"masks: {len(files)} files for people")
    return store.work()


if __name__ == "__main__":
    run(main)
