"""Say what a LoRA file is: model family, modules matched, ranks and alphas, and the share of norm by block."""

from __future__ import annotations

import argparse
from pathlib import Path

from likeness.errors import UserError
from likeness.program import run, set_threads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="a .safetensors file of any trainer, or a folder of PEFT")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.add_argument("--threads", type=int, default=2, help="modules read at once")
    args = parser.parse_args()
    if not args.file:
        raise UserError("give FILE=…, for example: make inspect FILE=drawer/film-look.safetensors")
    set_threads(1)

    from likeness.lora.inspect import inspect_lora
    from likeness.lora.program import show

    show(inspect_lora(Path(args.file), args.threads).as_dict(), args.json)


if __name__ == "__main__":
    run(main)
