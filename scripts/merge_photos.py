"""Join the index's shards into photos.parquet or pairs.parquet: exact duplicates dropped, near duplicates grouped."""

from __future__ import annotations

from pathlib import Path

from likeness.config.photos import PhotoStage
from likeness.photos.merge import VERSION, merge_photos
from likeness.program import as_about, parser_for, read_settings, run
from likeness.store import Work
from likeness.tables import PAIRS, PHOTOS, write_table


def main() -> Work:
    parser = parser_for(__doc__)
    parser.add_argument("--tables", type=Path, nargs="+", required=True, help="shard tables")
    parser.add_argument("--output", type=Path, required=True, help="table to write")
    args = parser.parse_args()
    stage = read_settings(args.settings, PhotoStage)
    rows = merge_photos(args.tables, stage)
    kind = PAIRS if stage.kind == "pairs" else PHOTOS
    write_table(args.output, kind, rows, as_about("merge_photos", VERSION, stage))
    duplicates = sum(row["status"] == "duplicate" for row in rows)
    groups = len({row["near_duplicate_group"] for row in rows} - {None})
    print(f"{stage.kind}: {len(rows)} found, {duplicates} duplicates, {groups} groups of near duplicates")
    return Work()


if __name__ == "__main__":
    run(main)
