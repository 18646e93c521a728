"""Build the miniature's base model: a real, tiny Flux2KleinPipeline, trained from scratch in about a minute of one core.

The folder appears whole or not at all: everything is made in a folder beside it and renamed. `manifest.json` in it
lists the sha256 of every file; the same seed and steps give the same manifest.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import tempfile
from pathlib import Path

from likeness import program
from likeness.errors import UserError

MANIFEST = "manifest.json"


def main() -> None:
    """Read the flags, build, write the manifest, rename."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the pipeline shall lie; must not exist")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="training steps; default: as many as the demo needs")
    arguments = parser.parse_args()
    if arguments.steps is not None and arguments.steps < 1:
        raise UserError(f"--steps must be at least 1, found {arguments.steps}")
    if arguments.folder.exists():
        raise UserError(f"--folder {arguments.folder} exists already; remove it or name another one")
    program.set_threads(1)
    build_atomically(arguments.folder, arguments.seed, arguments.steps)


def build_atomically(folder: Path, seed: int, steps: int | None) -> None:
    """Build beside the folder and rename; nothing stays behind when it fails."""
    from likeness.miniature.base import BaseSettings, build_base

    settings = BaseSettings() if steps is None else BaseSettings(steps=steps)
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        summary = build_base(work, seed, settings)
        manifest = {"seed": seed, **summary, "files": digests(work)}
        (work / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        work.chmod(0o755)
        work.rename(folder)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    print(json.dumps(summary, sort_keys=True))


def digests(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file of a folder by its relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


if __name__ == "__main__":
    program.run(main)
