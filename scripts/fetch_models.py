"""Fetch and verify every model that the configuration names, so that runs can be offline.

Hub models are downloaded into the hub's folder of this machine; what has to be put in place by hand is named. The output
lists each model with the hub commit that was fetched: pin it as `revision` to keep the bytes.
"""

from __future__ import annotations

from pathlib import Path

from likeness.models import FetchStage, fetch_models
from likeness.program import parser_for, read_settings, run
from likeness.store import Work, canonical_json, write_atomically


def main() -> Work:
    parser = parser_for(__doc__)
    parser.add_argument("--output", type=Path, required=True, help="JSON list of what was fetched or found")
    args = parser.parse_args()
    records = fetch_models(read_settings(args.settings, FetchStage).wanted)
    write_atomically(args.output, canonical_json(records).encode())
    print(f"{len(records)} models are here and as expected")
    return Work()


if __name__ == "__main__":
    run(main)
