"""Which files of a project belong to which subject and shard, listed while Snakemake parses the rules."""

from __future__ import annotations

import shlex
from functools import cached_property
from pathlib import Path
from typing import Any

from likeness.captions.edits import read_edits
from likeness.config.project import Project
from likeness.config.subject import Subject
from likeness.errors import UserError
from likeness.photos.names import PhotoFile, list_photos, shard_of
from likeness.photos.pairs import PairFiles, list_pairs


class ProjectFiles:
    """The files of the configured project, and where the tables of their shards lie."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.subjects: dict[str, Subject] = project.subjects

    @property
    def shards(self) -> list[int]:
        return list(range(self.project.shards))

    @property
    def store(self) -> str:
        return self.project.store

    def kind(self, subject: str) -> str:
        return self.subjects[subject].kind

    @cached_property
    def photos(self) -> dict[str, dict[int, list[str]]]:
        """Files of each subject's photos or pairs, by shard; an absent folder lists nothing and fails in its job."""
        return {name: self._by_shard(name) for name in self.subjects}

    def _by_shard(self, subject: str) -> dict[int, list[str]]:
        shards: dict[int, list[str]] = {shard: [] for shard in self.shards}
        for found in self._listed[subject]:
            shards[shard_of(found.id, self.project.shards)] += found.files
        return {shard: sorted(set(files)) for shard, files in shards.items()}

    @cached_property
    def _listed(self) -> dict[str, list[PhotoFile] | list[PairFiles]]:
        """Every subject's photos or pairs; folders are walked once."""
        return {
            name: list_photos(subject.photos) if subject.kind == "photos" else listed_pairs(subject)
            for name, subject in self.subjects.items()
        }

    def pair_tables(self, wildcards: Any) -> list[str]:
        """Pair tables of a subject: each shard reads its rows from them, and its job says which is not there."""
        return [table for table in self.tables_of(wildcards.subject) if Path(table).exists()]

    def tables_of(self, subject: str) -> list[str]:
        folders = self.subjects[subject].pairs
        return [str(Path(folder.path) / folder.table) for folder in folders if folder.table]

    def regularisation_files(self, wildcards: Any) -> list[str]:
        """Photos of the class of a subject."""
        return [photo.path for photo in list_photos(self.subjects[wildcards.subject].regularisation.photos)]

    def regularisation_to_encode(self, wildcards: Any) -> list[str]:
        """The tables of pictures of the class, where a training of the phase reads them."""
        subject = self.subjects[wildcards.subject]
        if not subject.regularised(wildcards.phase):
            return []
        folder, own = f"results/{wildcards.subject}/regularisation", subject.regularisation
        return [f"{folder}/photos.parquet"] * bool(own.photos) + [f"{folder}/drawn.parquet"] * bool(own.drawn)

    def regularisation_flag(self, wildcards: Any) -> str:
        return " ".join(f"--regularisation {path}" for path in self.regularisation_to_encode(wildcards))

    def targets_table(self, wildcards: Any) -> list[str]:
        """The ablation's table that a training takes its targets from."""
        wish = self.subjects[wildcards.subject].training_of(wildcards.variant, wildcards.phase).targets_from
        if wish is None:
            return []
        return [wish.table or f"results/{wildcards.subject}/ablation/{wish.ablation}.parquet"]

    def targets_flag(self, wildcards: Any) -> str:
        return " ".join(f"--ablation {shlex.quote(path)}" for path in self.targets_table(wildcards))

    def files_of_shard(self, wildcards: Any) -> list[str]:
        """Photos, hand-made masks and pair tables of one shard."""
        return self.photos[wildcards.subject][int(wildcards.shard)] + self.pair_tables(wildcards)

    @cached_property
    def sidecars(self) -> dict[str, dict[str, str]]:
        """Caption files beside each subject's photos or pairs, by name."""
        return {
            name: {found.id: path for found in listed if (path := found.sidecar)}
            for name, listed in self._listed.items()
        }

    @cached_property
    def edits(self) -> dict[str, dict[str, str]]:
        """Captions that a hand changed in each subject's captions.csv, by name."""
        return {
            name: read_edits(Path("results") / name / "captions.csv", {found.id for found in listed})
            for name, listed in self._listed.items()
        }

    def _of_shard(self, by_name: dict[str, str], shard: int) -> dict[str, str]:
        return {name: text for name, text in by_name.items() if shard_of(name, self.project.shards) == shard}

    def sidecars_of_shard(self, wildcards: Any) -> list[str]:
        """Caption files beside the photos of one shard."""
        return sorted(self._of_shard(self.sidecars[wildcards.subject], int(wildcards.shard)).values())

    def index_of_shard(self, wildcards: Any) -> str:
        """The index table of one shard."""
        return f"results/{wildcards.subject}/shards/{self.kind(wildcards.subject)}/{wildcards.shard}.parquet"

    def index_of_subject(self, wildcards: Any) -> str:
        """The merged index table of one subject."""
        return f"results/{wildcards.subject}/{self.kind(wildcards.subject)}.parquet"

    def shard_tables(self, subject: str, stage: str) -> list[str]:
        return [f"results/{subject}/shards/{stage}/{shard}.parquet" for shard in self.shards]


def listed_pairs(subject: Subject) -> list[PairFiles]:
    """The pairs of a subject; none where a table or role is wrong, which fails in its index job and stops no other subject."""
    try:
        return list_pairs(subject.pairs)
    except UserError:
        return []
