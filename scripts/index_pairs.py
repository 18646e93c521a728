"""Index one shard of a subject's before/after pairs: hashes, sizes, and a reason for every pair that is no use."""

from __future__ import annotations

from pathlib import Path

from likeness.config.photos import PhotoStage
from likeness.photos.index import VERSION, index_pairs
from likeness.program import as_about, parser_for, read_settings, run
from likeness.store import Store, Work
from likeness.tables import PAIRS, write_table


def main() -> Work:
    parser = parser_for(__doc__)
    parser.add_argument("--shard", type=int, required=True, help="which shard, from 0")
    parser.add_argument("--shards", type=int, required=True, help="number of shards")
    parser.add_argument("--store", type=Path, required=True, help="folder of the item store")
    parser.add_argument("--output", type=Path, required=True, help="table to write")
    args = parser.parse_args()
    stage = read_settings(args.settings, PhotoStage)
    store = Store(args.store)
    rows = index_pairs(stage, args.shard, args.shards, store)
    write_table(args.output, PAIRS, rows, as_about("index_pairs", VERSION, stage))
    usable = sum(row["status"] == "ok" for row in rows)
    print(f"pairs: {usable} of {len(rows)} usable")
    return store.work()


if __name__ == "__main__":
    run(main)
