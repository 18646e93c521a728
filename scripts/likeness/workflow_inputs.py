"""Which of a user's files Snakemake can take as inputs of a job, and what stands for the others in the job's settings.

Snakemake reads braces in a name as a wildcard. An input that it cannot resolve refuses the whole run at first; once the
job's output is there, it skips the job without a word, whatever else was edited. So only files that are there and have
no braces become inputs. The others enter the settings with their size and time of change, and start the job as inputs
would; the job reads them like all others, or says of each that it is missing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

MISSING = "missing"


@dataclass(frozen=True)
class UserFiles:
    """Files of one job: `inputs` for Snakemake, and the state of those that can be none, by path."""

    inputs: list[str]
    others: dict[str, str]

    @property
    def there(self) -> set[str]:
        """All but the missing ones."""
        return {*self.inputs, *(path for path, state in self.others.items() if state != MISSING)}


class Folders:
    """Tells files that are there from those that are not by one listing a folder, not by one look a file."""

    def __init__(self) -> None:
        self._names: dict[str, frozenset[str]] = {}

    def has(self, path: str) -> bool:
        """Whether there is a file, or a link to one, at this path; only one that no listing shows is looked for by itself."""
        folder, _, name = path.rpartition("/")
        if folder not in self._names:
            self._names[folder] = names_of_files(folder or ("/" if path.startswith("/") else "."))
        return name in self._names[folder] or Path(path).is_file()

    def sorted_out(self, paths: Iterable[str]) -> UserFiles:
        """Part a job's files into inputs and others, each in order of their paths."""
        inputs: list[str] = []
        others: dict[str, str] = {}
        for path in sorted(set(paths)):
            if not self.has(path):
                others[path] = MISSING
            elif has_braces(path):
                others[path] = state_of(path)
            else:
                inputs.append(path)
        return UserFiles(inputs, others)


def names_of_files(folder: str) -> frozenset[str]:
    """Names of the files in a folder; none where it is absent, or closed to us though its files may not be."""
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if entry.is_file())
    except (OSError, ValueError):  # a table may name anything
        return frozenset()


def has_braces(path: str) -> bool:
    """Whether Snakemake could take a part of a path for a wildcard."""
    return "{" in path and "}" in path


def state_of(path: str) -> str:
    """Size and time of change of a file: read at every start of Snakemake, so its bytes are not."""
    try:
        found = Path(path).stat()
    except OSError:
        return MISSING
    return f"{found.st_size} bytes, changed {found.st_mtime_ns}"
