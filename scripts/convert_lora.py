"""Write a LoRA file of any trainer in diffusers' layout or ComfyUI's.

Diffusers' file keeps the scale in its metadata; ComfyUI's has fused projections and the scale folded in.
"""

from __future__ import annotations

from pathlib import Path

from likeness.program import run, set_threads


def main() -> None:
    set_threads(1)
    from likeness.lora.program import copied, lora_parser, show, write_comfyui_result, write_result

    parser = lora_parser(__doc__)
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--format", choices=("diffusers", "comfyui"), required=True)
    args = parser.parse_args()

    from likeness.lora.files import open_lora

    lora = open_lora(args.input, args.lokr_rank)
    if args.format == "diffusers":
        found = write_result(args, args.output, copied(lora), [args.input])
    else:
        found = write_comfyui_result(args, args.output, lora.loaded(), args.input)
    show(found, args.json)


if __name__ == "__main__":
    run(main)
