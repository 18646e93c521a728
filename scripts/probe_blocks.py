"""Find out without training which blocks of a subject's base model take content and which take style from the prompt.

Each block alone gets another prompt's text: one that changes what is shown, one that changes how it is shown.
"""

from __future__ import annotations

from pathlib import Path

from likeness.config.surgery import ProbeStage
from likeness.program import parser_for, read_settings, run, set_threads
from likeness.store import Store, Work


def main() -> Work:
    parser = parser_for(__doc__)
    parser.add_argument("--subject", required=True)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="table to write")
    args = parser.parse_args()
    stage = read_settings(args.settings, ProbeStage)
    set_threads(stage.scoring.evaluation.cpu_threads)

    from likeness.evaluation.probe import Prober, probe_blocks

    store = Store(args.store)
    prober = Prober(stage.scoring, store)
    rows = probe_blocks(prober, stage, args.subject, args.output)
    print(f"{len(rows) // 2} blocks probed by two swaps of the prompt")
    return store.work(prober.models_loaded)


if __name__ == "__main__":
    run(main)
