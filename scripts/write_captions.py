"""Write the captions of one shard: what a person wrote wins, then what is stored, then the backend is asked."""

from __future__ import annotations

import json
from pathlib import Path

from likeness.config.captions import CaptionStage
from likeness.errors import UserError
from likeness.program import argument_text, as_about, parser_for, read_settings, run, set_threads
from likeness.store import Work


def main() -> Work:
    parser = parser_for(__doc__)
    parser.add_argument("--images", required=True, type=Path, help="photos or pairs table of the shard")
    parser.add_argument("--quality", required=True, type=Path, help="quality table of the shard")
    parser.add_argument("--store", required=True, type=Path, help="folder of the store")
    parser.add_argument("--output", required=True, type=Path, help="captions table to write")
    args = parser.parse_args()
    stage = read_settings(args.settings, CaptionStage)
    if complaint := json.loads(argument_text(args.settings)).get("unread_edits"):
        raise UserError(complaint)
    set_threads(stage.cpu_threads)

    from likeness.captions.write import VERSION, CaptionWriter
    from likeness.photos.images import read_image_rows
    from likeness.store import Store
    from likeness.tables import CAPTIONS, QUALITY, read_rows, write_table

    store = Store(args.store)
    writer = CaptionWriter(stage, store)
    rows = writer.rows(read_image_rows(args.images), read_rows(args.quality, QUALITY))
    about = as_about("captions", VERSION, stage.captions)
    write_table(
        args.output, CAPTIONS, rows, about | ({"fingerprint": writer.fingerprint} if writer.fingerprint else {})
    )
    review = sum(row["status"] != "ok" for row in rows)
    print(f"captions: {len(rows)} rows, {review} to review")
    return store.work(writer.models_loaded)


if __name__ == "__main__":
    run(main)
