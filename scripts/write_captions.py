"""Write the captions of one shard."""

from __future__ import annotations

from pathlib import Path

from likeness.captions.write import VERSION, write_captions
from likeness.config.captions import CaptionStage
from likeness.program import as_about, parser_for, read_settings, run, set_threads
from likeness.store import Store
from likeness.tables import CAPTIONS, QUALITY, read_rows, write_table


def main() -> None:
    parser = parser_for(__doc__)
    parser.add_argument("--images", required=True, type=Path, help="photos or pairs table of the shard")
    parser.add_argument("--quality", required=True, type=Path, help="quality table of the shard")
    parser.add_argument("--store", required=True, type=Path, help="folder of the store")
    parser.add_argument("--output", required=True, type=Path, help="captions table to write")
    args = parser.parse_args()
    stage = read_settings(args.settings, CaptionStage)
    set_threads(stage.cpu_threads)
    store = Store(args.store)
    rows = write_captions(stage, read_rows(args.images), read_rows(args.quality, QUALITY), store)
    write_table(args.output, CAPTIONS, rows, as_about("captions", VERSION, stage.captions))
    print(f"captions: {len(rows)} rows; {store.summary()}")


if __name__ == "__main__":
    run(main)
