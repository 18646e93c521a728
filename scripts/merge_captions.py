"""Merge the captions of all shards, and write captions.csv for editing by hand."""

from __future__ import annotations

from pathlib import Path

from likeness.captions.edits import write_edits
from likeness.captions.write import VERSION
from likeness.config.captions import CaptionStage
from likeness.program import as_about, parser_for, read_settings, run
from likeness.tables import CAPTIONS, merge_tables, write_table


def main() -> None:
    parser = parser_for(__doc__)
    parser.add_argument("--tables", required=True, nargs="+", type=Path, help="captions tables of all shards")
    parser.add_argument("--csv", required=True, type=Path, help="captions.csv to write for people")
    parser.add_argument("--output", required=True, type=Path, help="captions table to write")
    args = parser.parse_args()
    stage = read_settings(args.settings, CaptionStage)
    table = merge_tables(args.tables, CAPTIONS)
    rows = table.to_pylist()
    write_edits(args.csv, [row | {"written": written(row)} for row in rows])
    write_table(args.output, CAPTIONS, table, as_about("captions", VERSION, stage.captions))
    print(f"captions: {len(rows)} rows, {sum(row['caption_by'] == 'captions.csv' for row in rows)} edited by hand")


def written(row: dict) -> str:
    """What the pipeline itself says: its own caption where a hand edited it, else the caption as it stands."""
    return (row["caption_raw"] or "") if row["caption_by"] == "captions.csv" else row["caption"]


if __name__ == "__main__":
    run(main)
