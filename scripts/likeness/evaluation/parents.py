"""Finds the LoRA that a config names as a parent: a checkpoint, a file, another candidate, or the best of all checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from likeness.config.evaluation import ChoiceStage
from likeness.config.surgery import Parent
from likeness.errors import UserError
from likeness.evaluation.choice import rank
from likeness.evaluation.draw import LoraFile
from likeness.evaluation.score import existing, lora_of
from likeness.evaluation.scores import Checkpoint, Scores
from likeness.store import Store
from likeness.tables import SCORES, read_rows


@dataclass(frozen=True)
class Found:
    """A parent with its file and its place in the score tables (None for a file that no table knows)."""

    lora: LoraFile
    checkpoint: Checkpoint | None
    text: str

    def as_record(self) -> dict[str, str | int | None]:
        """What is written down about it."""
        place = (
            {"variant": self.checkpoint.variant, "phase": self.checkpoint.phase, "step": self.checkpoint.step}
            if self.checkpoint
            else {}
        )
        return {"name": self.text, "sha256": self.lora.sha256, **place}


@dataclass(frozen=True)
class Candidates:
    """What `best` is chosen from: score tables of checkpoints and of the base, and the files behind them by sha256."""

    score_tables: Sequence[Path]
    loras: Mapping[str, LoraFile]


def find_parents(
    parents: Sequence[Parent], paths: Sequence[Path], candidates: Candidates, choice: ChoiceStage, store: Store
) -> list[Found]:
    """Find every parent; `paths` holds, in order, steps.json, published.json or LoRA file of all that are not `best`.

    Raises UserError for a step that training did not save, a file that is gone, and a `best` that nothing could be
    chosen for.
    """
    wanted = [parent for parent in parents if not parent.best]
    if len(wanted) != len(paths):
        raise UserError(f"--parents: {len(paths)} paths are given for {len(wanted)} parents.")
    by_place = iter(paths)
    return [
        _best(candidates, choice, store) if parent.best else _listed(parent, next(by_place), store)
        for parent in parents
    ]


def _listed(parent: Parent, path: Path, store: Store) -> Found:
    if parent.file is not None:
        if not path.is_file():
            raise UserError(f"the LoRA file {path} does not exist. Correct `file:`, or put it there.")
        sha256 = store.save_blob(path.read_bytes())
        return Found(LoraFile(path, sha256), None, path.name)
    listed = json.loads(path.read_text("utf-8"))
    if parent.subject is not None:
        return _published(parent.subject, path, listed, store)
    steps = sorted(one["step"] for one in listed)
    step = steps[-1] if parent.step is None else parent.step
    one = next((one for one in listed if one["step"] == step), None)
    if one is None:
        raise UserError(
            f"{parent}: training saved no checkpoint at step {step}. Allowed: {', '.join(map(str, steps))}."
        )
    phase = path.parent.name
    checkpoint = Checkpoint(parent.variant or "", phase, step)
    return Found(existing(path.parent / one["file"], one["sha256"], store), checkpoint, str(checkpoint))


def _published(subject: str, path: Path, record: Mapping[str, Any], store: Store) -> Found:
    """The file that another subject's published.json lists."""
    name = f"{subject}.safetensors"
    if name not in record["files"]:
        raise UserError(f"subject {subject} publishes no LoRA: {record['reason']}. Name a file or another parent.")
    return Found(existing(path.parent / name, record["files"][name], store), None, f"published by {subject}")


def _best(candidates: Candidates, choice: ChoiceStage, store: Store) -> Found:
    """The choice's rule over every checkpoint that no surgery made, on the select half; a pick by hand does not count."""
    scores = Scores([row for table in candidates.score_tables for row in read_rows(table, SCORES)])
    ranking = rank(scores, choice)
    if ranking.chosen is None:
        raise UserError(f"of: best: nothing can be chosen, because {ranking.reason}. Name a variant, phase and step.")
    lora = lora_of(scores.sha256s[ranking.chosen], dict(candidates.loras), store, str(ranking.chosen))
    return Found(lora, ranking.chosen, str(ranking.chosen))
