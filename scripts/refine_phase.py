"""Settle which candidates a phase trains on by the losses of the training before it: the manifest, and why."""

import sys
from pathlib import Path

from likeness.config.phases import RefineStage
from likeness.program import as_about, parser_for, read_settings, run, set_threads
from likeness.store import Work


def main() -> Work:
    parser = parser_for(__doc__)
    parser.add_argument("--phase", required=True, help="name of the phase")
    parser.add_argument("--candidates", type=Path, required=True, help="phases/candidates/<phase>.parquet")
    parser.add_argument("--previous", type=Path, required=True, help="manifest of the phase before")
    parser.add_argument("--losses", type=Path, help="log.parquet of the training whose losses count, where any do")
    parser.add_argument("--manifest", type=Path, required=True, help="phases/<phase>.parquet to write")
    parser.add_argument("--refined", type=Path, required=True, help="phases/refined/<phase>.parquet to write")
    args = parser.parse_args()
    stage = read_settings(args.settings, RefineStage)
    set_threads(1)

    from likeness.phases.refine import STAGE, VERSION, refine_phase
    from likeness.tables import CANDIDATES, LOG, MANIFEST, REFINED, read_rows, write_table

    candidates, previous = read_rows(args.candidates, CANDIDATES), read_rows(args.previous, MANIFEST)
    log = read_rows(args.losses, LOG) if args.losses else []
    refined = refine_phase(candidates, previous, log, stage, args.phase)
    write_table(args.manifest, MANIFEST, refined.manifest)
    write_table(args.refined, REFINED, refined.rows, as_about(STAGE, VERSION, stage))
    print(f"phase {args.phase}: {len(refined.manifest)} of {len(candidates)} candidates kept")
    if not refined.manifest:
        print(f"warning: phase {args.phase} keeps no sample", file=sys.stderr)
    return Work()


if __name__ == "__main__":
    run(main)
