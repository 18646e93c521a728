"""Write a LoRA file of any trainer in diffusers' layout or ComfyUI's.

Diffusers' file keeps the scale in its metadata; ComfyUI's has fused projections and the scale folded in.
"""

from __future__ import annotations

import json
from pathlib import Path

from likeness.program import run, set_threads


def main() -> None:
    set_threads(1)
    from likeness.lora.program import copied, layout_to_write, lora_parser, show, told, write_result

    parser = lora_parser(__doc__)
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--format", choices=("diffusers", "comfyui"), required=True)
    args = parser.parse_args()

    from likeness.lora.comfyui import write_comfyui
    from likeness.lora.files import file_of, open_lora, sha256_of
    from likeness.lora.operation import Written
    from likeness.lora.program import TYPES

    lora = open_lora(args.input, args.lokr_rank)
    if args.format == "diffusers":
        found = write_result(args, args.output, copied(lora), [args.input])
    else:
        lora = lora.loaded().cast(TYPES[args.type]) if args.type else lora.loaded()
        parents = {"parents": json.dumps([sha256_of(file_of(args.input))])}
        sha256 = write_comfyui(args.output, lora, layout_to_write(args.base, lora), {"operation": "convert", **parents})
        found = told(args, args.output, {"operation": "convert"}, Written(sha256, copied(lora).rows()), [args.input])
    show(found, args.json)


if __name__ == "__main__":
    run(main)
