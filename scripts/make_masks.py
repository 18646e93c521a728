"""Make the face, head and person masks of one shard's candidate faces, on the photo's grid and on the crop's."""

from __future__ import annotations

from pathlib import Path

from likeness.config.masks import MaskStage
from likeness.program import as_about, parser_for, read_settings, run, set_threads
from likeness.store import Work


def main() -> Work:
    parser = parser_for(__doc__)
    parser.add_argument("--images", type=Path, required=True, help="photos or pairs table of the shard")
    parser.add_argument("--faces", type=Path, required=True, help="faces table of the shard")
    parser.add_argument("--store", type=Path, required=True, help="folder of the item store")
    parser.add_argument("--output", type=Path, required=True, help="masks table to write")
    args = parser.parse_args()
    stage = read_settings(args.settings, MaskStage)
    set_threads(stage.cpu_threads)

    from likeness.masks.stage import VERSION, MaskStageRunner, masks_by_hand
    from likeness.photos.images import read_images
    from likeness.store import Store
    from likeness.tables import FACES, MASKS, read_rows, write_table

    store = Store(args.store)
    images = {(image.id, image.role): image for image in read_images(args.images)}
    by_hand = masks_by_hand(args.images)
    faces = [row for row in read_rows(args.faces, FACES) if (row["id"], row["role"]) in images]
    rows, about = [], as_about("masks", VERSION, stage)
    loaded = 0
    if faces:
        runner = MaskStageRunner(stage.masks, store, stage.offline, stage.cpu_threads)
        for face in faces:
            name = face["id"], face["role"]
            rows += runner.rows(images[name], face, by_hand.get(name))
        loaded = runner.models_loaded
        if any(face["face"] is not None for face in faces):
            about["fingerprint"] = runner.fingerprint
    write_table(args.output, MASKS, rows, about)
    return store.work(loaded)


if __name__ == "__main__":
    run(main)
