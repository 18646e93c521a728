"""Detect the faces of one shard's images: boxes, landmarks, embeddings and crops, as a table of candidates."""

from __future__ import annotations

from pathlib import Path

from likeness.config.faces import FaceStage
from likeness.program import as_about, parser_for, read_settings, run, set_threads
from likeness.store import Work


def main() -> Work:
    parser = parser_for(__doc__)
    parser.add_argument("--images", type=Path, required=True, help="photos or pairs table of the shard")
    parser.add_argument("--store", type=Path, required=True, help="folder of the item store")
    parser.add_argument("--output", type=Path, required=True, help="faces table to write")
    args = parser.parse_args()
    stage = read_settings(args.settings, FaceStage)
    set_threads(stage.cpu_threads)

    from likeness.config.faces import NO_DETECTOR
    from likeness.faces.stage import VERSION, FaceStageRunner, row_unseen
    from likeness.photos.images import read_images
    from likeness.store import Store
    from likeness.tables import FACES, write_table

    store = Store(args.store)
    images = read_images(args.images)
    rows, about = [], as_about("faces", VERSION, stage)
    loaded = 0
    if stage.faces.backend == NO_DETECTOR:
        rows = [row_unseen(image) for image in images]
    elif images:
        runner = FaceStageRunner(stage.faces, store, stage.offline, stage.cpu_threads)
        rows = [row for image in images for row in runner.rows(image)]
        about["fingerprint"], loaded = runner.fingerprint, runner.models_loaded
    write_table(args.output, FACES, rows, about)
    return store.work(loaded)


if __name__ == "__main__":
    run(main)
