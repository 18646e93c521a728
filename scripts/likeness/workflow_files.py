"""Which files of a project belong to which subject and shard, listed while Snakemake parses the rules."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from functools import cached_property
from glob import glob
from pathlib import Path
from typing import Any

from likeness.captions.contents import edits_of
from likeness.config.project import Project
from likeness.config.subject import Subject
from likeness.errors import UserError
from likeness.photos.names import PhotoFile, join, list_photos, shard_of, walk_files
from likeness.photos.pairs import PairFiles, list_pairs
from likeness.workflow_inputs import MISSING, Folders, UserFiles


class ProjectFiles:
    """The files of the configured project, and where the tables of their shards lie."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.subjects: dict[str, Subject] = project.subjects
        self.folders = Folders()

    @property
    def shards(self) -> list[int]:
        return list(range(self.project.shards))

    @property
    def store(self) -> str:
        return self.project.store

    def kind(self, subject: str) -> str:
        return self.subjects[subject].kind

    @cached_property
    def photos(self) -> dict[str, dict[int, UserFiles]]:
        """Photos or pairs, masks and pair tables of each subject, by shard; an absent folder lists nothing and fails in its job."""
        return {name: self._by_shard(name) for name in self.subjects}

    def _by_shard(self, subject: str) -> dict[int, UserFiles]:
        shards: dict[int, list[str]] = {shard: self.tables_of(subject) for shard in self.shards}
        for found in self._listed[subject]:
            shards[shard_of(found.id, self.project.shards)] += found.files
        return {shard: self.folders.sorted_out(files) for shard, files in shards.items()}

    @cached_property
    def _listed(self) -> dict[str, list[PhotoFile] | list[PairFiles]]:
        """Every subject's photos or pairs; folders are walked once."""
        return {
            name: list_photos(subject.photos) if subject.kind == "photos" else listed_pairs(subject)
            for name, subject in self.subjects.items()
        }

    def tables_of(self, subject: str) -> list[str]:
        """Pair tables of a subject: each shard reads its rows from them, and its job says which is not there."""
        folders = self.subjects[subject].pairs
        return [str(Path(folder.path) / folder.table) for folder in folders if folder.table]

    @cached_property
    def class_photos(self) -> dict[str, UserFiles]:
        """Photos of the class of each subject."""
        return {
            name: self.folders.sorted_out(photo.path for photo in list_photos(subject.regularisation.photos))
            for name, subject in self.subjects.items()
        }

    def regularisation_files(self, wildcards: Any) -> list[str]:
        return self.class_photos[wildcards.subject].inputs

    def reference_files(self, subject: str) -> UserFiles:
        """Photos that show who a subject is."""
        return self.folders.sorted_out(self.subjects[subject].reference)

    def references(self, wildcards: Any) -> list[str]:
        return self.reference_files(wildcards.subject).inputs

    def regularisation_to_encode(self, wildcards: Any) -> list[str]:
        """The tables of pictures of the class, where the training reads them."""
        subject = self.subjects[wildcards.subject]
        if not subject.regularised(wildcards.phase, wildcards.variant):
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
        return self.photos[wildcards.subject][int(wildcards.shard)].inputs

    @cached_property
    def sidecars(self) -> dict[str, dict[str, str]]:
        """Caption files beside each subject's photos or pairs, by name; a link to nothing is none."""
        return {
            name: {found.id: path for found in listed if (path := found.sidecar) and self.folders.has(path)}
            for name, listed in self._listed.items()
        }

    @property
    def edits(self) -> dict[str, dict[str, str]]:
        """Captions that a hand changed in each subject's captions.csv, by the name of the photo or pair that takes them.

        None where the file cannot be read.
        """
        return {name: found for name, (found, _) in self._edits.items()}

    @property
    def unread_edits(self) -> dict[str, str]:
        """What is wrong with each subject's captions.csv, for its jobs to say; empty where it is read."""
        return {name: complaint for name, (_, complaint) in self._edits.items()}

    @cached_property
    def _edits(self) -> dict[str, tuple[dict[str, str], str]]:
        return {
            name: listed_edits(Path("results") / name / "captions.csv", listed) for name, listed in self._listed.items()
        }

    def _of_shard(self, by_name: dict[str, str], shard: int) -> dict[str, str]:
        return {name: text for name, text in by_name.items() if shard_of(name, self.project.shards) == shard}

    def sidecar_files(self, subject: str, shard: int) -> UserFiles:
        """Caption files beside the photos of one shard."""
        return self.folders.sorted_out(self._of_shard(self.sidecars[subject], shard).values())

    def sidecars_of_shard(self, wildcards: Any) -> list[str]:
        return self.sidecar_files(wildcards.subject, int(wildcards.shard)).inputs

    def _own_files(self, wildcards: Any) -> list[str]:
        """What a training reads of the user's, beside photos: the LoRA file that its phase starts from."""
        file = self.subjects[wildcards.subject].phases[wildcards.phase].file
        return [file] if file is not None else []

    def initial_lora(self, wildcards: Any) -> list[str]:
        """The LoRA file that a phase starts from, where it names one, so that other bytes in it start the training."""
        return self.folders.sorted_out(self._own_files(wildcards)).inputs

    def external(self, subject: str) -> list[str]:
        """Variants that are finished LoRA files."""
        return [name for name, variant in self.subjects[subject].variants.items() if variant.lora]

    def loras_of(self, wildcards: Any) -> list[str]:
        """Files of an external variant."""
        return self._loras(wildcards.subject, wildcards.variant).inputs

    def _loras(self, subject: str, variant: str) -> UserFiles:
        return self.folders.sorted_out(glob(self.subjects[subject].variants[variant].lora or "", recursive=True))

    def _loras_left_out(self) -> list[str]:
        """Warnings about files of external variants that cannot be ranked."""
        return [
            f"{subject}: variants.{variant}.lora: {path} is left out. "
            + ("It is a link to nothing." if state == MISSING else "Rename it without braces.")
            for subject in self.subjects
            for variant in self.external(subject)
            for path, state in self._loras(subject, variant).others.items()
        ]

    def _masks_of_nobody(self) -> Iterator[str]:
        """Warnings about masks drawn by hand that no photo or pair takes; folders of masks alone are walked for it."""
        for name, subject in self.subjects.items():
            folders = {folder.masks for folder in (*subject.photos, *subject.pairs) if folder.masks}
            taken = {found.mask_path for found in self._listed[name]} if folders else set()
            for folder in sorted(folders):
                left = [path for path in walk_files(folder) if join(folder, path) not in taken]
                if left:
                    more = f" and {len(left) - 1} more" if len(left) > 1 else ""
                    yield (
                        f"{name}: {join(folder, left[0])}{more}: nobody's mask. A mask is a PNG that is named as its photo "
                        "or pair, below the masks folder as the photo below its own."
                    )

    def external_flag(self, wildcards: Any) -> str:
        """`--loras` for the files of external variants, where there are any."""
        files = [
            path for name in self.external(wildcards.subject) for path in self._loras(wildcards.subject, name).inputs
        ]
        return f"--loras {shlex.join(files)}" if files else ""

    def user_files(self, subject: str) -> dict[str, set[str]]:
        """Files of the user that are there, by the rule that reads them; those that a key names alone are no listing."""
        drawers = [self._loras(subject, name).there for name in self.external(subject)]
        return {
            f"index_{self.kind(subject)}": set().union(*(files.there for files in self.photos[subject].values())),
            "write_captions": set(self.sidecars[subject].values()),
            "merge_faces": self.reference_files(subject).there,
            "index_regularisation": self.class_photos[subject].there,
            "score_files": set().union(*drawers),
        }

    def index_of_shard(self, wildcards: Any) -> str:
        """The index table of one shard."""
        return f"results/{wildcards.subject}/shards/{self.kind(wildcards.subject)}/{wildcards.shard}.parquet"

    def index_of_subject(self, wildcards: Any) -> str:
        """The merged index table of one subject."""
        return f"results/{wildcards.subject}/{self.kind(wildcards.subject)}.parquet"

    def index_of_shards(self, wildcards: Any) -> list[str]:
        """The index tables of all shards."""
        return self.shard_tables(wildcards.subject, self.kind(wildcards.subject))

    def shard_tables(self, subject: str, stage: str) -> list[str]:
        return [f"results/{subject}/shards/{stage}/{shard}.parquet" for shard in self.shards]


def listed_pairs(subject: Subject) -> list[PairFiles]:
    """The pairs of a subject; none where a table or role is wrong, which fails in its index job and stops no other subject."""
    try:
        return list_pairs(subject.pairs)
    except UserError:
        return []


def listed_edits(path: Path, listed: Sequence[PhotoFile] | Sequence[PairFiles]) -> tuple[dict[str, str], str]:
    """Edited captions by name, or none and what is wrong with the file, which stops no other subject."""
    try:
        return edits_of(path, listed), ""
    except UserError as error:
        return {}, str(error)
    except OSError as error:
        return {}, f"{error.filename or path}: cannot be read ({error.strerror}). Allow reading, or put the file there."
