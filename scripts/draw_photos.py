"""Draw the photos of the demo's subjects: robin, robin-smiles and astronaut; seconds, no network, the same bytes each time.

Each subject gets a folder of its own; what was planted there is told in `truth/` beside them. Files that are there
already and right are left alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from likeness import program

SUBJECTS = ("robin", "robin-smiles", "astronaut")


def main() -> None:
    """Read the flags and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the subjects' folders shall lie")
    parser.add_argument("--only", nargs="+", choices=SUBJECTS, default=SUBJECTS, help="draw these subjects only")
    parser.add_argument("--seed", type=int, default=0, help="who robin is, and all the drawn scenes")
    arguments = parser.parse_args()
    program.set_threads(1)
    for subject in arguments.only:
        count = draw(subject, arguments.folder, arguments.seed)
        print(f"{arguments.folder / subject}: {count} drawn")


def draw(subject: str, folder: Path, seed: int) -> int:
    """Draw one subject's folder and return the number of its photos or pairs."""
    if subject == "astronaut":
        from likeness.miniature.astronaut import draw_astronaut

        return len(draw_astronaut(folder / subject, folder / "truth" / "astronaut.csv"))
    from likeness.miniature.photos import draw_robin, draw_robin_smiles

    if subject == "robin":
        return len(draw_robin(folder / subject, seed))
    return len(draw_robin_smiles(folder / subject, folder / "truth" / "robin-smiles.csv", seed))


if __name__ == "__main__":
    program.run(main)
