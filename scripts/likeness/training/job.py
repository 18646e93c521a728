"""A training that has steps to compute, as one value: what this process, or workers of its own, are told of it.

This module imports nothing heavy, and the value goes through JSON unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from likeness.config.training import TrainingSettings, TrainStage
from likeness.store import Store
from likeness.training.base import open_base
from likeness.training.records import Record, TrainingFolder

if TYPE_CHECKING:
    from likeness.klein.load import BaseModel


@dataclass(frozen=True)
class Start:
    """The weights that a training starts from; None for a fresh adapter. Of a group alone, other modules start fresh."""

    path: Path
    sha256: str
    is_group: bool = False


@dataclass(frozen=True)
class TrainingJob:
    """One phase of one variant, of which the checkpoints of the steps `missing` are not in the store.

    `stage` has its number of steps resolved, `rows` are the ENCODED rows that are read, sorted by sample id, `key` is the
    training's name in the store. What is shown of it meanwhile goes below the folder `watched`.
    """

    folder: TrainingFolder
    stage: TrainStage
    rows: Sequence[Mapping[str, Any]]
    start: Start | None
    missing: Sequence[int]
    key: str
    watched: Path

    @property
    def settings(self) -> TrainingSettings:
        return self.stage.training

    @property
    def last_step(self) -> int:
        """The step with which nothing is missing any more."""
        return max(self.missing)

    def last_state(self) -> Record | None:
        """The state from which it is resumed; None at the start."""
        return self.folder.last_state(up_to=min(self.missing))

    def open_base(self, device: str | None = None) -> BaseModel:
        """Describe the base model in the training's type, on this device or on a leased one."""
        precision = self.settings.precision
        return open_base(self.stage.base_model, offline=self.stage.offline, dtype=precision, on_gpu=True, device=device)

    def as_record(self) -> dict[str, Any]:
        """The job as JSON holds it; a process in the same folder reads it back."""
        start = self.start
        return {
            "folder": str(self.folder.folder.resolve()),
            "store": str(self.folder.store.root.resolve()),
            "stage": self.stage.model_dump(mode="json"),
            "rows": list(self.rows),
            "start": [str(start.path), start.sha256, start.is_group] if start else None,
            "missing": list(self.missing),
            "key": self.key,
            "watched": str(self.watched.resolve()),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> TrainingJob:
        """The job that `as_record` was taken of."""
        start = record["start"]
        return cls(
            TrainingFolder(Path(record["folder"]), Store(Path(record["store"]))),
            TrainStage.model_validate(record["stage"]),
            record["rows"],
            Start(Path(start[0]), *start[1:]) if start else None,
            record["missing"],
            record["key"],
            Path(record["watched"]),
        )
