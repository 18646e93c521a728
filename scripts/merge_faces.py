"""Join the shards' faces, choose the subject's face in each photo, and put the crops beside the results."""

from __future__ import annotations

from pathlib import Path

from likeness.config.faces import FaceMerge
from likeness.program import as_about, parser_for, read_settings, run, set_threads
from likeness.store import Work


def main() -> Work:
    parser = parser_for(__doc__)
    parser.add_argument("--tables", type=Path, nargs="+", required=True, help="faces tables of all shards")
    parser.add_argument("--store", type=Path, required=True, help="folder of the item store")
    parser.add_argument("--crops", type=Path, required=True, help="folder of the crops for people")
    parser.add_argument("--output", type=Path, required=True, help="merged faces table to write")
    args = parser.parse_args()
    settings = read_settings(args.settings, FaceMerge)
    set_threads(1)

    from likeness.faces.by_products import restore_folder
    from likeness.faces.merge import VERSION, crop_files, merge_faces
    from likeness.store import Store
    from likeness.tables import FACES, merge_tables, write_table

    store = Store(args.store)
    rows, loaded = merge_faces(merge_tables(args.tables, FACES).to_pylist(), settings, store)
    restore_folder(store, args.crops, crop_files(rows))
    write_table(args.output, FACES, rows, as_about("faces", VERSION, settings))
    return store.work(loaded)


if __name__ == "__main__":
    run(main)
