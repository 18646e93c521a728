"""Find and remove what is not kept: items with their files, files that nothing names, trainings that were superseded.

Records without files (detections, measures, captions, scores, and all that are packed) stay: together they are small,
and some were paid for. Of a training that current results name, the records and the last resume state stay; one that was not finished
stays as it is, so that it goes on; one that was finished and is named no more goes.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from likeness.errors import UserError
from likeness.pruning.keep import Kept
from likeness.store import Store
from likeness.training.external import STAGE as EXTERNAL
from likeness.training.records import TrainingFolder, is_finished

CHECKPOINTS, TRAININGS, TORN = "checkpoints and LoRA files", "trainings", "left half-written"


@dataclass
class Waste:
    """What can go: items before files, so that no record ever points at nothing; counts and bytes by stage."""

    items: list[Path] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    bytes_by_stage: Counter[str] = field(default_factory=Counter)

    def add(self, place: list[Path], path: Path, stage: str, counts: bool = True) -> None:
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else 0
        place.append(path)
        self.counts[stage] += counts
        self.bytes_by_stage[stage] += size or path.stat().st_size

    def remove(self) -> None:
        for path in [*self.items, *self.files]:
            path.unlink(missing_ok=True)
        for path in self.folders:
            shutil.rmtree(path, ignore_errors=True)

    def told(self) -> str:
        """A line a stage and one for all."""
        lines = [
            f"  {stage:<28} {self.counts[stage]:>8} {self.bytes_by_stage[stage] / 1e6:>12.1f} MB"
            for stage in sorted(self.bytes_by_stage)
        ]
        total = f"{self.counts.total()} items, {self.bytes_by_stage.total() / 1e6:.1f} MB"
        return "\n".join([*lines, total])


def find_waste(store: Store, kept: Kept) -> Waste:
    """Everything in the store that is not kept; raises UserError while a training is running."""
    waste = Waste()
    needed = kept.files | unfinished_checkpoints(store, kept, waste)
    stage_of_file: dict[str, str] = {}
    items = [(path, files_of_item(path)) for path in sorted((store.root / "items").glob("*/*/*.json"))]
    needed = needed.union(*(named for path, named in items if path.stem in kept.items))
    for path, named in items:
        stage = path.parts[-3]
        if named and not named <= needed:
            waste.add(waste.items, path, stage)
            stage_of_file |= dict.fromkeys(named, stage)
    for path in sorted((store.root / "blobs").glob("*/*")):
        if path.name not in needed and not path.name.startswith("."):
            stage = stage_of_file.get(path.name, CHECKPOINTS)
            waste.add(waste.files, path, stage, counts=stage == CHECKPOINTS)
    for part in ("items", "blobs", "packs"):
        for path in sorted((store.root / part).rglob(".*.tmp")):
            waste.add(waste.files, path, TORN)
    for path in left_by_other_trainers(store):
        waste.add(waste.folders, path, TORN)
    return waste


def left_by_other_trainers(store: Store) -> Iterator[Path]:
    """Folders below <store>/external that killed jobs left: rendered and never used, or kept though the result is stored.

    The folder of a training that has not ended stays, so that its trainer goes on there.
    """
    for folder in sorted(path for path in (store.root / EXTERNAL).glob("*") if path.is_dir()):
        if folder.name.startswith("."):
            yield folder
            continue
        hold_briefly(folder.with_name(f"{folder.name}.lock"))
        if store.item_path(EXTERNAL, folder.name).exists():
            yield folder


def files_of_item(path: Path) -> set[str]:
    """Hashes of the files that an item names; none where it is torn, which counts as absent anyway."""
    try:
        return set(json.loads(path.read_bytes())["files"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


def unfinished_checkpoints(store: Store, kept: Kept, waste: Waste) -> set[str]:
    """Look through the trainings: note what can go of them, and return the checkpoints of those that go on."""
    needed: set[str] = set()
    for folder in sorted((store.root / "trainings").glob("*")):
        hold_briefly(folder / "lock")
        records = TrainingFolder(folder, store).records().values()
        own = {sha256 for record in records for sha256 in record.checkpoints.values()}
        if own & kept.checkpoints:
            for state in earlier_states(folder):
                waste.add(waste.files, state, TRAININGS, counts=False)
        elif is_finished(folder):
            waste.add(waste.folders, folder, TRAININGS)
        else:
            needed |= own
    return needed


def earlier_states(folder: Path) -> Iterator[Path]:
    """Resume states but the last."""
    yield from sorted(folder.glob("state-*.safetensors"))[:-1]


def hold_briefly(lock: Path) -> None:
    """Raise UserError where another process holds a training's lock."""
    try:
        with FileLock(lock, timeout=0):
            return
    except Timeout:
        raise UserError(f"{lock}: this training is running. Wait for it, or end it, then prune.") from None
