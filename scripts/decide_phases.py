"""Decide what each phase trains on and what is held out: manifests, holdout, and the reason of every candidate."""

import sys
from pathlib import Path

from likeness.config.phases import DecisionStage
from likeness.program import as_about, parser_for, read_settings, run, set_threads
from likeness.store import Work


def main() -> Work:
    parser = parser_for(__doc__)
    parser.add_argument("--images", type=Path, required=True, help="merged photos or pairs")
    parser.add_argument("--faces", type=Path, required=True, help="merged faces")
    parser.add_argument("--masks", type=Path, required=True, help="merged masks")
    parser.add_argument("--quality", type=Path, required=True, help="merged quality")
    parser.add_argument("--captions", type=Path, required=True, help="merged captions")
    parser.add_argument("--output-folder", type=Path, required=True, help="folder of the manifests")
    args = parser.parse_args()
    stage = read_settings(args.settings, DecisionStage)
    set_threads(1)

    from likeness.locks import writing
    from likeness.phases.decide import STAGE, VERSION, decide
    from likeness.phases.faces import faces_by_image, sample_faces
    from likeness.phases.held_out import HELD_OUT, read_held_out, write_held_out
    from likeness.phases.samples import join_samples
    from likeness.photos.images import read_image_rows
    from likeness.tables import (
        CANDIDATES,
        CAPTIONS,
        DECISIONS,
        FACES,
        HOLDOUT,
        MANIFEST,
        MASKS,
        QUALITY,
        SAMPLE_FACES,
        read_rows,
        write_table,
    )

    images, faces = read_image_rows(args.images), read_rows(args.faces, FACES)
    samples = join_samples(
        images,
        faces,
        read_rows(args.masks, MASKS),
        read_rows(args.quality, QUALITY),
        read_rows(args.captions, CAPTIONS),
        stage,
    )
    folder: Path = args.output_folder
    found = faces_by_image(images, faces)
    with writing(folder):
        decision = decide(samples, stage, read_held_out(folder / HELD_OUT))
        for name, rows in decision.manifests.items():
            write_table(folder / f"{name}.parquet", MANIFEST, rows)
            print(f"phase {name}: {len(rows)} of {len(samples)} kept")
        for name, rows in decision.candidates.items():
            write_table(folder / "candidates" / f"{name}.parquet", CANDIDATES, rows)
            print(f"phase {name}: {len(rows)} of {len(samples)} kept until losses decide")
        write_table(folder / "holdout.parquet", HOLDOUT, decision.holdout)
        for name, rows in {**decision.manifests, **decision.candidates, "holdout": decision.holdout}.items():
            write_table(folder / "faces" / f"{name}.parquet", SAMPLE_FACES, sample_faces(rows, found))
        write_table(folder / "decisions.parquet", DECISIONS, decision.decisions, as_about(STAGE, VERSION, stage))
        write_held_out(folder / HELD_OUT, decision.remembered)
    for warning in decision.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return Work()


if __name__ == "__main__":
    run(main)
