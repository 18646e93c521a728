"""Encode the samples of a phase: latents, text embeddings and loss weights, kept in the store.

Computes only what the store does not have; the VAE and the text encoder are loaded at the first such item.
"""

from __future__ import annotations

import logging
from pathlib import Path

from likeness.config.training import EncodeStage
from likeness.program import parser_for, read_settings, run, set_threads
from likeness.store import Work


def main() -> Work:
    parser = parser_for(__doc__)
    parser.add_argument("--manifest", type=Path, required=True, help="phases/<phase>.parquet")
    parser.add_argument(
        "--holdout", type=Path, help="phases/holdout.parquet: samples kept from training, to measure on"
    )
    parser.add_argument(
        "--faces", type=Path, action="append", default=[], help="phases/faces/<phase>.parquet, where a loss reads faces"
    )
    parser.add_argument(
        "--regularisation",
        type=Path,
        action="append",
        default=[],
        help="pictures of the class, where a loss reads them",
    )
    parser.add_argument("--images", type=Path, required=True, help="photos.parquet or pairs.parquet")
    parser.add_argument("--store", type=Path, required=True, help="folder of stored items")
    parser.add_argument("--output", type=Path, required=True, help="encoded/<variant>/<phase>.parquet")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    stage = read_settings(args.settings, EncodeStage)
    set_threads(stage.cpu_threads)

    from likeness.store import Store
    from likeness.training.encode import encode_samples

    store = Store(args.store)
    tables = (args.holdout, args.faces, args.regularisation)
    models_loaded = encode_samples(stage, args.manifest, args.images, store, args.output, *tables)
    return store.work(models_loaded)


if __name__ == "__main__":
    run(main)
