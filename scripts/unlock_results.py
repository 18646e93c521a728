"""After a crash of Snakemake itself: name what of this folder still runs, so that nobody unlocks under it.

Exits with 1 while a job, or another Snakemake, lives here; it can be waited for, or ended with the kill command that is
printed. Only processes of this machine are seen: on a cluster, ask its scheduler too.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from likeness.program import run

SCRIPTS = Path(__file__).resolve().parent


def orphans(folder: Path) -> list[tuple[int, str]]:
    """Process ids and names of Likeness programs, and of Snakemake, that work in `folder`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            here = (process / "cwd").resolve() == folder.resolve()
            dead = (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            continue
        name = program_of(words)
        if here and not dead and name and int(process.name) != os.getpid():
            found.append((int(process.name), name))
    return sorted(found)


def program_of(words: Sequence[str]) -> str | None:
    """Which of our programs a command line runs, if any: the script that Python was given, or Snakemake."""
    if not Path(words[0]).name.startswith(("python", "snakemake")):
        return None
    if Path(words[0]).name == "snakemake" or "snakemake" in words[1:3] or Path(words[1]).name == "snakemake":
        return "snakemake"
    script = next((Path(word) for word in words[1:] if word.endswith(".py")), None)
    return script.name if script and script.resolve().parent == SCRIPTS else None


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
