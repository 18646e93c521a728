"""Build the miniature's model folders: face packs for insightface, tiny SAM 2, Qwen3-VL and YOLO models."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from likeness.errors import UserError
from likeness.miniature.pack import build_parts


def main(arguments: list[str] | None = None) -> int:
    """Build what the command line asks for; 0, or 2 after a mistake of the user."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--folder", type=Path, required=True, help="where to write; replaced as a whole if built before"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all weights, pictures and training (default 0)")
    parser.add_argument(
        "--parts", default="pack,sam2,vlm", help="comma-separated: pack, sam2, vlm, yolo (default pack,sam2,vlm)"
    )
    options = parser.parse_args(arguments)
    try:
        build_parts(options.folder, options.seed, tuple(part.strip() for part in options.parts.split(",")))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
