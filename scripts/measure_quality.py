"""Measure one shard: sharpness, exposure, framing, light and background; for pairs also what the edit changed."""

from pathlib import Path

from likeness.config.quality import QualityStage
from likeness.program import as_about, parser_for, read_settings, run, set_threads
from likeness.store import Work


def main() -> Work:
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
    from likeness.quality.measure import STAGE, VERSION, body_model_of, measure_shard, slice_told
    from likeness.store import Store
    from likeness.tables import FACES, MASKS, QUALITY, read_rows, write_table

    store = Store(args.store)
    body_model = body_model_of(stage, store)
    tables = read_rows(args.faces, FACES), read_rows(args.masks, MASKS)
    rows = measure_shard(read_images(args.images), *tables, stage.quality, store, body_model=body_model)
    write_table(args.output, QUALITY, rows, as_about(STAGE, VERSION, slice_told(stage)))
    loaded = 0 if body_model is None else int(body_model.loaded)
    return store.work(loaded)


if __name__ == "__main__":
    run(main)
