"""What follows when a job finds a stored file damaged that another job makes: the next run makes it anew.

The file itself is gone by then (`Store.read_blob` removes it), but tables still say that it is there, so nothing would
start the job that makes it. Those tables are removed; the same command then runs their jobs, which find all other items
in the store and compute the one that is missing. Only tables of the subject that the failed job worked on are touched.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

MADE = (
    "shards/*/*.parquet",
    "regularisation/*.parquet",
    "encoded/*/*.parquet",
    "train/*/*/steps.json",
    "surgery/*.json",
    "evaluation/**/scores.parquet",
)
"""Tables below results/<subject> whose jobs put files into the store."""


def forget(sha256: str, words: Iterable[str]) -> list[Path]:
    """Remove the tables that name a lost file; `words` are the command line of the job that missed it."""
    named = [table for folder in subject_folders(words) for table in tables_naming(folder, sha256)]
    for table in named:
        table.unlink(missing_ok=True)
    return named


def subject_folders(words: Iterable[str]) -> list[Path]:
    """The folders results/<subject> that a command line names, in order."""
    found = set()
    for word in words:
        parts = Path(word).parts
        if "results" in parts[:-2]:
            folder = Path(*parts[: parts.index("results") + 2])
            if not folder.name.startswith(".") and folder.is_dir():
                found.add(folder)
    return sorted(found)


def tables_naming(folder: Path, sha256: str) -> list[Path]:
    """Tables of one subject, among those whose jobs fill the store, that hold this hash anywhere."""
    paths = sorted({path for pattern in MADE for path in folder.glob(pattern)})
    return [path for path in paths if names(path, sha256)]


def names(path: Path, sha256: str) -> bool:
    """Whether a JSON file or a text column of a table holds a hash; a table that cannot be read holds nothing."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix == ".json":
        return sha256.encode() in path.read_bytes()
    try:
        table = pq.ParquetFile(path).read(use_threads=False)
    except (OSError, pa.ArrowException):
        return False
    return any(holds(value, sha256) for column in table.itercolumns() for value in column.to_pylist())


def holds(value: object, sha256: str) -> bool:
    """Whether a cell is a hash, or a list with it."""
    return value == sha256 or (isinstance(value, list) and sha256 in value)
