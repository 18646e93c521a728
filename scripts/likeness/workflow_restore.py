"""Files beside a job's declared output that somebody deleted: the job runs once more and puts them back.

Snakemake does not know these files, since it would delete them whenever their job starts. So the job's settings carry a
number that is one higher where a file is gone. Snakemake notes the settings of each run, and the number stays as noted
while all files are there: the run that puts them back is the only one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from likeness.evaluation.judge import read_json
from likeness.reruns.records import METADATA, read_record, record_path

KEY = "restored"


def gone(rule: str, subject: str) -> list[str]:
    """Paths of a job's by-products that are not there though its declared output is."""
    output = declared_output(rule, subject)
    return [str(path) for path in BY_PRODUCTS[rule][1](output) if not path.exists()] if output.exists() else []


def times_restored(rule: str, subject: str) -> int:
    """How often the job was started to put files back, with this run where some are gone now."""
    output = declared_output(rule, subject)
    noted = next(read_record(METADATA, record_path(str(output))), None)
    before = (noted.settings or {}).get(KEY, 0) if noted else 0
    return before + bool(gone(rule, subject))


def declared_output(rule: str, subject: str) -> Path:
    return Path("results", subject, BY_PRODUCTS[rule][0])


def published_files(record: Path) -> list[Path]:
    """What published.json lists of the present LoRA; what went to the archive is nobody's to put back."""
    listed = read_json(record).get("files") or {}
    return [record.parent / name for name in listed if not name.startswith("archive/")]


def captions_csv(table: Path) -> list[Path]:
    return [table.with_name("captions.csv")]


BY_PRODUCTS: dict[str, tuple[str, Callable[[Path], list[Path]]]] = {
    "merge_captions": ("captions.parquet", captions_csv),
    "publish_lora": ("lora/published.json", published_files),
}
"""Rules whose by-products people read, each with its declared output below results/<subject> and what lies beside it."""
