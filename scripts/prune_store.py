"""Free the store of what no current result needs, and say how much of each stage goes.

Kept are: crops, masks and encoded samples that a table of the results names; the LoRAs that are published, archived or
finalists, what surgery made, and the last step of each training, with their images; the base's images; the records of trainings that the
results name, with their last resume state; unfinished trainings; and all records without files (detections, measures,
captions, scores).

Freed are: everything of photos, captions and settings that are gone; the other checkpoints with their images; trainings
that were superseded; the images of ablations, of pairs of LoRAs and of probes. The next run has nothing to do, as before.
Three things cost again what they cost once: undoing an edit from before (trains again), whatever scores or takes apart
all checkpoints anew (draws them again), and deleting results.

Without --yes nothing is removed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from likeness.errors import UserError
from likeness.program import run
from likeness.workflow import Plan
from unlock_results import orphans


def check_idle(folder: Path) -> None:
    """Raise UserError while a run of this folder is on."""
    locks = folder / ".snakemake" / "locks"
    living = orphans(folder)
    if living:
        names = ", ".join(f"{name} (process {number})" for number, name in living)
        raise UserError(f"a run is on: {names}. Wait for it, or end it, then prune.")
    if locks.is_dir() and any(locks.iterdir()):
        raise UserError(f"{locks}: a run is on, or crashed. Wait for it, or call `make unlock`, then prune.")


def results_of(store: Path, also: list[Path]) -> list[Path]:
    """The results folders that use the store; raises UserError where others may use it too and none is named."""
    own = Path("results")
    if not store.resolve().is_relative_to(Path.cwd()) and not also:
        raise UserError(
            f"store: {store} lies outside this project, so that others may use it. Name every project that does "
            "with --also FOLDER, this one's where there is no other; what they need is kept."
        )
    found = [own, *(folder / "results" for folder in also)]
    for folder in found:
        if not folder.is_dir():
            raise UserError(f"{folder}: there are no results, so all of the store would go. Run first.")
    return list({folder.resolve(): folder for folder in found}.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--yes", action="store_true", help="remove; without it only say what would go")
    parser.add_argument("--also", type=Path, nargs="+", default=[], help="other projects' folders that share the store")
    args = parser.parse_args()
    for folder in (Path(), *args.also):
        check_idle(folder)

    from likeness.pruning.keep import kept_of_results
    from likeness.pruning.sweep import find_waste
    from likeness.store import Store

    store = Store(Path(Plan.load([], {}).store))
    waste = find_waste(store, kept_of_results(results_of(store.root, args.also)))
    if args.yes:
        waste.remove()
    print(f"{'freed' if args.yes else 'would be freed'} in {store.root}, by stage (items, size):")
    print(waste.told())
    if not args.yes and waste.counts:
        print("Nothing was removed: call `make prune YES=1`, or this program with --yes.")


if __name__ == "__main__":
    run(main)
