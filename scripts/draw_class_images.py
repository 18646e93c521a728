"""Draw pictures of a subject's class with the bare base model, for the regularisation set; each is a stored item."""

from __future__ import annotations

import logging
from pathlib import Path

from likeness.config.regularisation import ClassImagesStage
from likeness.program import parser_for, read_settings, run, set_threads
from likeness.store import Work


def main() -> Work:
    parser = parser_for(__doc__)
    parser.add_argument("--store", type=Path, required=True, help="folder of stored items")
    parser.add_argument(
        "--output", type=Path, required=True, help="regularisation/drawn.parquet; pictures lie beside it"
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    stage = read_settings(args.settings, ClassImagesStage)
    set_threads(stage.cpu_threads)

    from likeness.evaluation.class_images import draw_class_images
    from likeness.store import Store

    store = Store(args.store)
    models_loaded = draw_class_images(stage, store, args.output)
    return store.work(models_loaded)


if __name__ == "__main__":
    run(main)
