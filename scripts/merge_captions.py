"""Merge the captions of all shards, and write captions.csv for editing by hand."""

from __future__ import annotations

from pathlib import Path

from likeness.captions.consistency import reviewed
from likeness.captions.contents import content_of_row, settled
from likeness.captions.edits import next_lines, read_lines, write_lines
from likeness.captions.interview import VERSION
from likeness.config.captions import CaptionStage
from likeness.locks import writing
from likeness.photos.images import read_image_rows
from likeness.program import as_about, parser_for, read_settings, run
from likeness.store import Work
from likeness.tables import CAPTIONS, merge_tables, write_table


def main() -> Work:
    parser = parser_for(__doc__)
    parser.add_argument("--tables", required=True, nargs="+", type=Path, help="captions tables of all shards")
    parser.add_argument("--images", required=True, nargs="+", type=Path, help="photos or pairs tables of all shards")
    parser.add_argument("--csv", required=True, type=Path, help="captions.csv to write for people")
    parser.add_argument("--output", required=True, type=Path, help="captions table to write")
    args = parser.parse_args()
    stage = read_settings(args.settings, CaptionStage)
    rows = reviewed(merge_tables(args.tables, CAPTIONS).to_pylist(), stage)
    found = {row["id"]: content_of_row(row) for table in args.images for row in read_image_rows(table)}
    contents = {row["id"]: content for row in rows if (content := found.get(row["id"]))}
    with writing(args.csv.parent):
        lines, loans = settled(read_lines(args.csv, {row["id"] for row in rows}), contents)
        write_lines(args.csv, next_lines(rows, lines, loans))
    write_table(args.output, CAPTIONS, rows, as_about("captions", VERSION, stage.captions))
    edited = sum(row["caption_by"] == "captions.csv" for row in rows)
    review = sum(row["status"] != "ok" for row in rows)
    print(f"captions: {len(rows)} rows, {edited} edited by hand, {review} to review")
    return Work()


if __name__ == "__main__":
    run(main)
