"""Measure one shard: sharpness, exposure, framing, light and background; for pairs also what the edit changed."""

from pathlib import Path

from likeness.config.quality import QualityStage
from likeness.program import as_about, parser_for, read_settings, run, set_threads


def main() -> None:
    parser = parser_for(__doc__)
    parser.add_argument("--images", type=Path, required=True, help="the shard's photos or pairs")
    parser.add_argument("--faces", type=Path, required=True, help="the shard's faces")
    parser.add_argument("--masks", type=Path, required=True, help="the shard's masks")
    parser.add_argument("--store", type=Path, required=True, help="folder of the item store")
    parser.add_argument("--output", type=Path, required=True, help="quality table of the shard")
    args = parser.parse_args()
    stage = read_settings(args.settings, QualityStage)
    set_threads(1)

    from likeness.photos.images import read_images
    from likeness.quality.measure import STAGE, VERSION, measure_shard
    from likeness.store import Store
    from likeness.tables import FACES, MASKS, QUALITY, read_rows, write_table

    store = Store(args.store)
    rows = measure_shard(
        read_images(args.images), read_rows(args.faces, FACES), read_rows(args.masks, MASKS), stage.quality, store
    )
    write_table(args.output, QUALITY, rows, as_about(STAGE, VERSION, stage))
    print(f"{store.summary()}; models loaded: 0")


if __name__ == "__main__":
    run(main)
