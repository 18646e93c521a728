"""Measure training steps on this machine: seconds, memory, and the fraction of what its GPU could do.

Models have their full size and random weights, so nothing is downloaded. Without --resolution, --references or
--precision, the table changes one of them at a time; what is given holds for every row. The diffusers example script's
own step runs beside the trainer's.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from likeness.program import run, set_threads
from likeness.store import write_atomically


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", choices=("4b", "9b", "miniature"), default="9b", help="miniature: on the CPU as well"
    )
    parser.add_argument("--resolution", type=int, help="side of the square target in px (default: 512, 768 and 1024)")
    parser.add_argument("--references", type=int, choices=range(5), help="references of an edit (default: 0 to 4)")
    parser.add_argument("--precision", choices=("bf16", "fp8"), help="of the frozen base (default: bf16, int8 and fp8)")
    parser.add_argument(
        "--compiled",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="rows with compiled blocks, each of which compiles for a minute or more before its first step",
    )
    parser.add_argument("--steps", type=int, default=10, help="steps timed a row, of which the median counts")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    set_threads(1)

    from likeness.training.bench import HEADER, as_record, as_row, cases_of, device_for, measure, measure_peaks

    peaks = measure_peaks(device_for(args.model))
    fp8 = f"{peaks.fp8 / 1e12:.1f}" if peaks.fp8 else "none"
    print(f"{peaks.device}: {peaks.bf16 / 1e12:.1f} TFLOP/s in bf16, {fp8} in fp8, of its own square products")
    cases = cases_of(args.model, args.resolution, args.references, args.precision)
    results = []
    print("\t".join(HEADER))
    for result in measure([case for case in cases if args.compiled or not case.compiled], peaks, args.steps):
        results.append(result)
        print("\t".join(as_row(result)), flush=True)
        if args.json:
            # After every row: what was measured stays when the rest takes too long.
            write_atomically(args.json, (json.dumps(as_record(peaks, results), indent=1) + "\n").encode())


if __name__ == "__main__":
    run(main)
