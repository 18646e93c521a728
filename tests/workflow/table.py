"""The words in which the table of reruns is written: edits, sets of jobs, and steps that join the two.

Jobs are named by rule and wildcards. Where a shard depends on the photo, the name holds the photo's role in braces:
`detect_faces/robin/{kept}` is the shard of a photo that the training uses.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tests.workflow.project import Project, Run

from likeness.photos.names import shard_of
from likeness.tables import DECISIONS, read_rows

SHARDS = 2
PER_SHARD = ("index_photos", "detect_faces", "make_masks", "measure_quality", "write_captions")
MERGES = ("merge_faces", "merge_masks", "merge_quality", "merge_captions")
PAGES = {"write_curation", "write_report"}
STEPS_FILE = "results/robin/train/main/main/steps.json"
CAPTIONS_CSV = "results/robin/captions.csv"


# ---- sets of jobs ---------------------------------------------------------------------------------------------------


def shards(subject: str, *places: str | int) -> set[str]:
    """All per-photo stages of some shards."""
    names = ["{" + place + "}" if isinstance(place, str) else place for place in places]
    return {f"{rule}/{subject}/{name}" for rule in PER_SHARD for name in names}


def merges(subject: str) -> set[str]:
    return {f"merge_photos/{subject}/photos", *(f"{rule}/{subject}" for rule in MERGES)}


def decision(subject: str) -> set[str]:
    return {f"decide_phases/{subject}"}


def curation(subject: str, *places: str | int) -> set[str]:
    """What an edit of photos always starts: their shards, the merges, the decision, the pages."""
    return shards(subject, *places) | merges(subject) | decision(subject) | PAGES


def training(subject: str, *phases: str, variant: str = "main") -> set[str]:
    return {f"train_lora/{subject}/{variant}/{phase}" for phase in phases}


def encoding(subject: str, *phases: str, variant: str = "main") -> set[str]:
    return {f"encode_samples/{subject}/{variant}/{phase}" for phase in phases}


def scores(subject: str, *phases: str, variant: str = "main") -> set[str]:
    return {f"score_checkpoints/{subject}/{variant}/{phase}" for phase in phases}


def base(subject: str) -> set[str]:
    return {f"score_base/{subject}"}


def choice(subject: str) -> set[str]:
    """Finalists, choice and publishing, which follow every score."""
    return {f"{rule}/{subject}" for rule in ("score_finalists", "choose_checkpoint", "publish_lora")}


def settings(subject: str) -> set[str]:
    """What shows every setting of a subject."""
    return {f"write_config/{subject}"} | PAGES


# ---- edits ----------------------------------------------------------------------------------------------------------


class Scene:
    """A copy of a finished project, and photos of it by what became of them in the first decision."""

    def __init__(self, project: Project, origin: Path) -> None:
        self.project, self.origin = project, origin
        self._names: dict[tuple[str, str], str] = {}
        for subject in sorted(path.name for path in (origin / "data").iterdir()):
            table = read_rows(origin / "results" / subject / "phases" / "decisions.parquet", DECISIONS)
            by_photo: dict[str, list[str]] = {}
            for row in table:
                by_photo.setdefault(row["id"], []).append(row["rule"])
            for name, rules in sorted(by_photo.items(), reverse=True):
                # A photo is left out only where no phase keeps it; later phases then say `earlier_phase`.
                rule = "kept" if "kept" in rules else next(rule for rule in rules if rule != "earlier_phase")
                self._names[subject, rule] = name

    def photo(self, role: str, subject: str = "robin") -> Path:
        """A photo by the rule that decided about it (kept, top, held_out …), or else by its name."""
        return self.folder(subject) / f"{self._names.get((subject, role), role)}.png"

    def folder(self, subject: str = "robin") -> Path:
        return self.project.folder / "data" / subject

    def named(self, jobs: Collection[str]) -> set[str]:
        """Jobs with the shard of each photo in place of its role."""
        return {self._named(job) for job in jobs}

    def _named(self, job: str) -> str:
        if "{" not in job:
            return job
        rule, subject, role = job.split("/")
        return f"{rule}/{subject}/{shard_of(self.photo(role.strip('{}'), subject).stem, SHARDS)}"


Edit = Callable[[Scene], object]


def nothing(scene: Scene) -> None:
    """Run again."""


def darken(role: str, subject: str = "robin") -> Edit:
    """Change a photo a little, in place."""

    def edit(scene: Scene) -> None:
        path = scene.photo(role, subject)
        pixels_HWC = np.asarray(Image.open(path))
        Image.fromarray((pixels_HWC * 0.97).astype(np.uint8)).save(path, compress_level=1)

    return edit


def revert(role: str, subject: str = "robin") -> Edit:
    """Bring a photo's first bytes back; the file is new."""

    def edit(scene: Scene) -> None:
        path = scene.photo(role, subject)
        path.unlink()
        shutil.copyfile(scene.origin / "data" / subject / path.name, path)

    return edit


def configure(old: str, new: str, subject: str | None = None) -> Edit:
    """Replace a piece of config.yaml, or of a subject's file."""
    return lambda scene: scene.project.reconfigure(old, new, subject)


def append(text: str, subject: str) -> Edit:
    """Add lines to a subject's file."""

    def edit(scene: Scene) -> None:
        file = scene.project.config_file(subject)
        file.write_text(file.read_text(encoding="utf-8") + text, encoding="utf-8")

    return edit


def edit_caption(role: str, more: str) -> Edit:
    """Give a line of captions.csv more words."""

    def edit(scene: Scene) -> None:
        path = scene.project.folder / CAPTIONS_CSV
        lines = read_captions(path)
        line = lines[scene.photo(role).stem]
        line["caption"] += more
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(line), lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines.values())

    return edit


def write_sidecar(role: str, *, as_before: bool) -> Edit:
    """Write the caption that stands now, or that stood before any edit, into a text file beside the photo."""

    def edit(scene: Scene) -> None:
        path = scene.photo(role)
        folder = scene.origin if as_before else scene.project.folder
        caption = read_captions(folder / CAPTIONS_CSV)[path.stem]["caption"]
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")

    return edit


def read_captions(path: Path) -> dict[str, dict[str, str]]:
    """Lines of captions.csv by photo."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        return {line["id"]: line for line in csv.DictReader(file)}


# ---- steps ----------------------------------------------------------------------------------------------------------


class Done(NamedTuple):
    """What a run did: the jobs that started, the items computed by stage, the models loaded by rule."""

    jobs: set[str]
    items: dict[str, int]
    models: dict[str, int]


@dataclass(frozen=True)
class Step:
    """An edit, and exactly what the next run does; `then` checks what else must hold."""

    edit: Edit
    jobs: Collection[str] = frozenset()
    items: Mapping[str, int] = field(default_factory=dict)
    models: Mapping[str, int] = field(default_factory=dict)
    target: tuple[str, ...] = ()
    then: Callable[[Scene, Run], object] | None = None


def difference(found: Done, wanted: Done) -> str:
    """What a run did too much or too little."""
    return (
        f"started in vain {sorted(found.jobs - wanted.jobs)}, did not start {sorted(wanted.jobs - found.jobs)}; "
        f"items {found.items}, wanted {wanted.items}; models {found.models}, wanted {wanted.models}"
    )


def follow(scene: Scene, steps: Collection[Step]) -> None:
    """Make each edit and compare what the run after it did with what the step says."""
    for number, step in enumerate(steps, start=1):
        step.edit(scene)
        run = scene.project.succeed(*step.target)
        wanted = Done(scene.named(step.jobs), dict(step.items), dict(step.models))
        found = Done(run.jobs, run.computed, run.models)
        assert found == wanted, f"step {number}: {difference(found, wanted)}"
        if step.then is not None:
            step.then(scene, run)
