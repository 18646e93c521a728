"""What a training leaves in the store while it runs: a folder of records, each written last and checked by hash.

A record says how far the training was (its log rows so far), which checkpoint was saved there (a file of the store, by
sha256), and which resume state lies beside it. Whatever does not match its hash counts as absent, so a training goes on
from the last good state, and one that is killed at any moment loses only the steps since then. This module imports
nothing heavy: a finished training is recognised without loading torch.

    <store>/trainings/<key>/record-000250.json, state-000250.safetensors, lock
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from likeness.store import Store, canonical_json, sha256_of_bytes, sha256_of_file, write_atomically

logger = logging.getLogger(__name__)
FINISHED = "finished"
KEPT_STATES = 2
"""Resume states that are kept: the last one, and the one before it in case that is damaged."""


class LogRow(NamedTuple):
    """One optimizer step; `samples` are places in the sorted list of sample ids, in the order of the next lists.

    `losses` holds the mean of every loss over the step's samples, before its weight.
    """

    loss: float
    learning_rate: float
    grad_norm: float
    sigma_mean: float
    samples: list[int]
    losses: dict[str, float]
    sample_losses: list[float]
    sample_sigmas: list[float]
    grad_ratios: list[float]


@dataclass(frozen=True)
class Record:
    """A training after `step` completed optimizer steps.

    `checkpoints` are the files saved at that step by the weights they hold: raw, and ema where there is an average.
    """

    step: int
    log: list[LogRow]
    checkpoints: Mapping[str, str]
    state_sha256: str | None
    scalars: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingFolder:
    """The records of one training."""

    folder: Path
    store: Store

    def records(self) -> dict[int, Record]:
        """All good records by step, in order."""
        found = (self._read(path) for path in sorted(self.folder.glob("record-*.json")))
        return {record.step: record for record in found if record is not None}

    def checkpoints(self) -> dict[int, Mapping[str, str]]:
        """The sha256 of every checkpoint's files by step, where all of them are in the store and undamaged."""
        return {
            step: record.checkpoints
            for step, record in self.records().items()
            if record.checkpoints
            and all(self._is_good(self.store.blob_path(one), one) for one in record.checkpoints.values())
        }

    def last_state(self, up_to: int) -> Record | None:
        """The record of the latest good resume state at or before a step."""
        for step, record in sorted(self.records().items(), reverse=True):
            if step <= up_to and record.state_sha256 and self._is_good(self.state_path(step), record.state_sha256):
                return record
        return None

    def log_up_to(self, step: int) -> list[LogRow] | None:
        """The log rows of steps 1 to `step`, or None where no record reaches so far."""
        reaching = [record for record in self.records().values() if record.step >= step]
        return reaching[0].log[:step] if reaching else None

    def adopt(self, output_folder: Path) -> None:
        """Take checkpoints that were pruned from the store back from where they lie beside the results."""
        for step, record in self.records().items():
            gone = {sha256 for sha256 in record.checkpoints.values() if not self.store.blob_path(sha256).exists()}
            for path in sorted(output_folder.glob(f"step-{step:06d}*.safetensors")) if gone else ():
                data = path.read_bytes()
                if sha256_of_bytes(data) in gone:
                    self.store.save_blob(data)

    def finish(self) -> None:
        """Note that a job has all it asked for, so that pruning can tell a superseded training from one that goes on."""
        (self.folder / FINISHED).touch()

    def go_on(self) -> None:
        """Note that steps are being computed again."""
        (self.folder / FINISHED).unlink(missing_ok=True)

    def save(
        self,
        step: int,
        log: Sequence[LogRow],
        checkpoints: Mapping[str, str],
        state: bytes,
        scalars: Mapping[str, Any],
    ) -> None:
        """Write the resume state, then the record that vouches for it, then drop states that are no longer needed."""
        earlier = self._read(self._record_path(step)) if self._record_path(step).exists() else None
        if not checkpoints and earlier is not None:
            checkpoints = earlier.checkpoints
        write_atomically(self.state_path(step), state)
        body = {
            "step": step,
            "log": [list(row) for row in log],
            "checkpoints": dict(checkpoints),
            "state_sha256": sha256_of_bytes(state),
            "scalars": dict(scalars),
        }
        digest = sha256_of_bytes(canonical_json(body).encode())
        write_atomically(self._record_path(step), canonical_json({**body, "sha256": digest}).encode())
        self._drop_states_before(step)

    def state_path(self, step: int) -> Path:
        return self.folder / f"state-{step:06d}.safetensors"

    def _record_path(self, step: int) -> Path:
        return self.folder / f"record-{step:06d}.json"

    def _drop_states_before(self, step: int) -> None:
        earlier = [path for path in sorted(self.folder.glob("state-*.safetensors")) if path <= self.state_path(step)]
        for path in earlier[:-KEPT_STATES]:
            path.unlink(missing_ok=True)

    def _read(self, path: Path) -> Record | None:
        try:
            body = json.loads(path.read_bytes())
            digest = body.pop("sha256")
            if digest != sha256_of_bytes(canonical_json(body).encode()):
                raise ValueError("its hash does not match")
            return Record(**{**body, "log": [LogRow(*row) for row in body["log"]]})
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s is ignored: %s", path.name, error)
            return None

    def _is_good(self, path: Path, sha256: str) -> bool:
        if not path.exists():
            return False
        if sha256_of_file(path) == sha256:
            return True
        logger.warning("%s is damaged and ignored", path.name)
        path.unlink(missing_ok=True)
        return False


def is_finished(folder: Path) -> bool:
    """Whether the last job of a training got all its steps."""
    return (folder / FINISHED).exists()


@contextlib.contextmanager
def open_folder(store: Store, key: str) -> Iterator[TrainingFolder]:
    """Hold the training's lock, waiting for another job that trains the same, and clear what a killed job left half-written."""
    folder = store.root / "trainings" / key
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.warning("waiting: another job trains exactly this")
        lock.acquire()
    try:
        for path in folder.glob(".*"):
            path.unlink(missing_ok=True)
        yield TrainingFolder(folder, store)
    finally:
        lock.release()
