"""Start the processes of a training that runs in several, and wait for them.

The job's own process keeps the locks and the GPUs' leases, and is the only one that Snakemake knows; it starts the
workers through torch's launcher, whose environment accelerate reads. They end with it, however it ends.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from likeness.config.training import TrainingSettings, TrainStage
from likeness.errors import UserError
from likeness.lease import lease_devices, visible_devices
from likeness.training.records import TrainingFolder

if TYPE_CHECKING:
    from likeness.training.train import Start

SCRIPTS = Path(__file__).resolve().parents[2]
WORKER = "likeness.training.worker"
PARENT_DEATH_SIGNAL = 1


def launch(
    folder: TrainingFolder,
    stage: TrainStage,
    settings: TrainingSettings,
    rows: Sequence[Mapping[str, Any]],
    start: Start | None,
    missing: Sequence[int],
    key: str,
    watched: Path,
) -> int:
    """Train in `settings.processes` processes on this machine; returns the number of optimizer steps computed.

    Raises UserError with a worker's own words where one fails. Without a GPU the processes share the CPU.
    """
    state = folder.last_state(up_to=min(missing))
    first_step = state.step if state else 0
    job = {
        "stage": stage.model_dump(mode="json"),
        "settings": settings.model_dump(mode="json"),
        "rows": list(rows),
        "start": [str(start.path), start.sha256, start.is_group] if start else None,
        "missing": list(missing),
        "key": key,
        "watched": str(watched.resolve()),
        "store": str(folder.store.root.resolve()),
        "folder": str(folder.folder.resolve()),
    }
    path = folder.folder / ".workers.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    try:
        with ExitStack() as leases:
            environment = environment_of(leases, settings)
            done = subprocess.run(
                launcher(settings.processes, path), env=environment, preexec_fn=end_with_parent, check=False
            )
        if done.returncode:
            errors = sorted(folder.folder.glob(".workers-error-*"))
            said = errors[0].read_text(encoding="utf-8") if errors else "their own words are above"
            raise UserError(f"training in {settings.processes} processes: {said}")
    finally:
        for left in folder.folder.glob(".workers*"):
            left.unlink()
    return max(missing) - first_step


def launcher(processes: int, job: Path) -> list[str]:
    """The command line of torch's launcher, for one machine and a free port."""
    options = ["--standalone", "--nproc-per-node", str(processes), "--max-restarts", "0"]
    return [sys.executable, "-m", "torch.distributed.run", *options, "-m", WORKER, str(job.resolve())]


def environment_of(leases: ExitStack, settings: TrainingSettings) -> dict[str, str]:
    """The workers' environment: the library's path, as many threads as set, and the leased GPUs alone."""
    import torch

    paths = [str(SCRIPTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(settings.cpu_threads)}
    if torch.cuda.is_available():
        devices = visible_devices(torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES"))
        places = leases.enter_context(lease_devices(devices, settings.processes))
        found["CUDA_VISIBLE_DEVICES"] = ",".join(devices[place] for place in places)
    return found


def end_with_parent() -> None:
    """Let the kernel end this process when its parent dies, also where that was killed and can say no word."""
    ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGTERM)
