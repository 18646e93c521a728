"""What the store must keep: every file that a current result names, with the LoRAs that were chosen.

Of a subject's LoRAs the published one, the finalists, those in the archive, what surgery made and the last step of each
training (from which a later phase or more steps go on) stay, with their images; the base's images stay, since
everything is compared with them. Crops, masks, drawn pictures of the class and encoded samples stay as far as a table names them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from likeness.errors import OldTableError, UserError
from likeness.store import item_key, sha256_of_bytes
from likeness.tables import ENCODED, FACES, MASKS, PHOTOS, SCORES, read_table
from likeness.training.encode import EMBEDDINGS
from likeness.training.encode import VERSION as ENCODING_VERSION

SHA256 = re.compile(r"[0-9a-f]{64}")
TABLES_WITH_FILES = {"faces": FACES, "masks": MASKS, "regularisation": PHOTOS, "encoded": ENCODED}
"""Tables whose columns of hashes name files of the store."""


@dataclass
class Kept:
    """Hashes of files, and keys of items whatever their files; `checkpoints` are those of trainings that results name."""

    files: set[str] = field(default_factory=set)
    items: set[str] = field(default_factory=set)
    checkpoints: set[str] = field(default_factory=set)


def kept_of_results(results: Iterable[Path]) -> Kept:
    """All that the results folders need; raises UserError for a subject whose tables are of another version."""
    kept = Kept()
    for folder in results:
        for subject in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
            try:
                keep_tables(kept, subject)
                keep_loras(kept, subject)
            except OldTableError:
                raise UserError(
                    f"{subject}: these results are of an earlier version, so it is not known what they need of the store. Run "
                    f"the workflow once, then prune. If {subject.name} is configured no more, move its folder away first."
                ) from None
            keep_exports(kept, subject)
    return kept


def keep_tables(kept: Kept, subject: Path) -> None:
    """Crops, masks, drawn pictures of the class and encoded samples, of merged tables and of shards."""
    for name, kind in TABLES_WITH_FILES.items():
        columns = [column.name for column in kind.columns if column.name.endswith(("sha256", "sha256s"))]
        tables = [subject / f"{name}.parquet", *(subject / "shards" / name).glob("*.parquet")]
        for path in [*tables, *(subject / name).rglob("*.parquet")]:
            if path.is_file():
                table = read_table(path, kind, columns)
                for column in columns:
                    kept.files |= set(flat(table[column].to_pylist()))


def flat(values: Iterable[Any]) -> Iterator[str]:
    """Hashes of a column of hashes or of lists of hashes."""
    for value in values:
        yield from [value] if isinstance(value, str) else value or ()


def keep_loras(kept: Kept, subject: Path) -> None:
    """Chosen checkpoints with their images, the base's images, and the embeddings of the prompts."""
    records = [*subject.glob("train/*/*/steps.json"), *subject.glob("surgery/*.json")]
    listed = [entry for path in records for entry in last_and_all(path)]
    kept.checkpoints |= {sha256 for sha256, _ in listed}
    loras = {sha256 for sha256, is_last in listed if is_last}
    for path in [subject / "best.json", subject / "lora" / "published.json", *subject.glob("lora/archive/*/best.json")]:
        if path.is_file() and (sha256 := json.loads(path.read_text("utf-8")).get("lora_sha256")):
            loras.add(sha256)
    evaluation = subject / "evaluation"
    finalists = evaluation / "report-half" / "scores.parquet"
    if finalists.is_file():
        loras |= set(read_table(finalists, SCORES, ["lora_sha256"])["lora_sha256"].to_pylist())
    loras.discard("")
    kept.files |= loras
    prompts: set[tuple[str, str]] = set()
    for path in sorted(evaluation.rglob("scores.parquet")):
        rows = read_table(path, SCORES, ["lora_sha256", "image", "base_model", "prompt"])
        named = zip(*(rows[name].to_pylist() for name in ("lora_sha256", "image")), strict=True)
        kept.files |= {image for sha256, image in named if not sha256 or sha256 in loras}
        prompts |= set(zip(rows["base_model"].to_pylist(), rows["prompt"].to_pylist(), strict=True))
    for base_model, prompt in prompts | {(base_model, "") for base_model, _ in prompts}:
        kept.items.add(item_key(EMBEDDINGS, ENCODING_VERSION, None, base_model, sha256_of_bytes(prompt.encode())))


def last_and_all(steps_json: Path) -> list[tuple[str, bool]]:
    """The files of one training's checkpoints, each with whether its step is the last."""
    listed = sorted(json.loads(steps_json.read_text("utf-8")), key=lambda entry: entry["step"])
    files = [(one, entry) for entry in listed for one in [entry, *entry.get("others", [])]]
    return [(one["sha256"], entry is listed[-1]) for one, entry in files]


def keep_exports(kept: Kept, subject: Path) -> None:
    """Pictures that were exported for other trainers."""
    for path in subject.glob("exports/*/*/files.json"):
        kept.files |= set(SHA256.findall(path.read_text("utf-8")))
