"""After a crash of Snakemake itself: name jobs of this folder that still run, so that nobody unlocks under them.

Exits with 1 while such a job lives; it can be waited for, or ended with the kill command that is printed.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from likeness.program import run

SCRIPTS = Path(__file__).resolve().parent


def orphans(folder: Path) -> list[tuple[int, str]]:
    """Process ids and command lines of Likeness programs that work in `folder`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            here = (process / "cwd").resolve() == folder.resolve()
            dead = (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            continue
        program = next((word for word in words if word.startswith(str(SCRIPTS)) and word.endswith(".py")), None)
        if here and program and not dead and int(process.name) != os.getpid():
            found.append((int(process.name), Path(program).name))
    return sorted(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(), help="the project's folder")
    living = orphans(parser.parse_args().folder)
    for number, name in living:
        print(f"still running: {name} (process {number})")
    if living:
        print(f"wait for them, or end them: kill {' '.join(str(number) for number, _ in living)}")
        sys.exit(1)
    print("no orphaned job of this folder is running")


if __name__ == "__main__":
    run(main)
