"""Index the photos of a subject's regularisation set: one row a file, usable or not."""

from pathlib import Path

from likeness.config.regularisation import RegularisationStage
from likeness.program import as_about, parser_for, read_settings, run, set_threads
from likeness.store import Work


def main() -> Work:
    parser = parser_for(__doc__)
    parser.add_argument("--store", type=Path, required=True, help="folder of stored items")
    parser.add_argument("--output", type=Path, required=True, help="regularisation/photos.parquet")
    args = parser.parse_args()
    stage = read_settings(args.settings, RegularisationStage)
    set_threads(1)

    from likeness.photos.index import VERSION
    from likeness.photos.regularisation import index_regularisation
    from likeness.store import Store
    from likeness.tables import PHOTOS, write_table

    store = Store(args.store)
    rows = index_regularisation(stage, store)
    write_table(args.output, PHOTOS, rows, as_about("regularisation", VERSION, stage))
    print(f"{sum(row['status'] == 'ok' for row in rows)} of {len(rows)} photos of the class can be used")
    return store.work()


if __name__ == "__main__":
    run(main)
