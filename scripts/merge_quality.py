"""Join the quality tables of all shards: one row a photo or pair, with what only the whole set tells."""

from pathlib import Path

from likeness.config.quality import QualityStage
from likeness.program import as_about, parser_for, read_settings, run, set_threads
from likeness.store import Work


def main() -> Work:
    parser = parser_for(__doc__)
    parser.add_argument("--tables", type=Path, nargs="+", required=True, help="quality tables of the shards")
    parser.add_argument("--images", type=Path, required=True, help="merged photos or pairs")
    parser.add_argument("--faces", type=Path, required=True, help="merged faces")
    parser.add_argument("--output", type=Path, required=True, help="merged quality table")
    args = parser.parse_args()
    stage = read_settings(args.settings, QualityStage)
    set_threads(1)

    from likeness.photos.images import read_image_rows
    from likeness.quality.measure import STAGE, VERSION, slice_told
    from likeness.quality.merge import merge_quality
    from likeness.tables import FACES, QUALITY, merge_tables, read_rows, write_table

    rows = merge_tables(args.tables, QUALITY).to_pylist()
    merged = merge_quality(rows, read_image_rows(args.images), read_rows(args.faces, FACES), stage.quality)
    write_table(args.output, QUALITY, merged, as_about(STAGE, VERSION, slice_told(stage)))
    lights = {row["light_cluster"] for row in merged if row["light_cluster"] is not None}
    print(f"quality: {len(merged)} samples under {len(lights)} lights")
    return Work()


if __name__ == "__main__":
    run(main)
