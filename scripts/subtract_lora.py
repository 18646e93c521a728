"""Take a background LoRA out of a full one: exactly, W − alpha · W_background, or by projection with --project.

--project RANK removes, at strength alpha, all that reads the RANK input directions that the background LoRA reads most.
"""

from __future__ import annotations

from pathlib import Path

from likeness.program import finite, run, set_threads


def main() -> None:
    set_threads(1)
    from likeness.lora.program import lora_parser, show, write_result

    parser = lora_parser(__doc__)
    parser.add_argument("full", type=Path)
    parser.add_argument("background", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--alpha", type=finite, default=1.0, help="0 takes nothing away, 1 all")
    parser.add_argument("--project", type=int, metavar="RANK", help="project out that many directions instead")
    args = parser.parse_args()

    from likeness.lora.files import open_lora
    from likeness.lora.subtract import project_out, subtract_lora

    full, background = (open_lora(path, args.lokr_rank) for path in (args.full, args.background))
    if args.project is None:
        operation = subtract_lora(full, background, args.alpha)
    else:
        operation = project_out(full, background, args.project, args.alpha)
    show(write_result(args, args.output, operation, [args.full, args.background]), args.json)


if __name__ == "__main__":
    run(main)
