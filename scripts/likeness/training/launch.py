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
from contextlib import ExitStack
from pathlib import Path

from likeness.config.training import TrainingSettings
from likeness.errors import UserError
from likeness.lease import lease_devices, visible_devices
from likeness.training.job import TrainingJob

SCRIPTS = Path(__file__).resolve().parents[2]
WORKER = "likeness.training.worker"
PARENT_DEATH_SIGNAL = 1
JOB = "LIKENESS_TRAINING_JOB"
"""Variable with the process id of the job that the workers belong to."""


def launch(job: TrainingJob) -> int:
    """Train in `settings.processes` processes on this machine; returns the number of optimizer steps computed.

    Raises UserError with a worker's own words where one fails. Without a GPU the processes share the CPU.
    """
    state, folder, processes = job.last_state(), job.folder.folder, job.settings.processes
    path = folder / ".workers.json"
    path.write_text(json.dumps(job.as_record()), encoding="utf-8")
    try:
        with ExitStack() as leases:
            environment = environment_of(leases, job.settings)
            done = subprocess.run(launcher(processes, path), env=environment, preexec_fn=end_with_parent, check=False)
        if done.returncode:
            errors = sorted(folder.glob(".workers-error-*"))
            said = errors[0].read_text(encoding="utf-8") if errors else "their own words are above"
            raise UserError(f"training in {processes} processes: {said}")
    finally:
        for left in folder.glob(".workers*"):
            left.unlink()
    return job.last_step - (state.step if state else 0)


def launcher(processes: int, job: Path) -> list[str]:
    """The command line of torch's launcher, for one machine and a free port."""
    options = ["--standalone", "--nproc-per-node", str(processes), "--max-restarts", "0"]
    return [sys.executable, "-m", "torch.distributed.run", *options, "-m", WORKER, str(job.resolve())]


def environment_of(leases: ExitStack, settings: TrainingSettings) -> dict[str, str]:
    """The workers' environment: the library's path, as many threads as set, and the leased GPUs alone."""
    import torch

    paths = [str(SCRIPTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(settings.cpu_threads)}
    found[JOB] = str(os.getpid())
    if torch.cuda.is_available():
        devices = visible_devices(torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES"))
        places = leases.enter_context(lease_devices(devices, settings.processes))
        found["CUDA_VISIBLE_DEVICES"] = ",".join(devices[place] for place in places)
    return found


def end_with_parent() -> None:
    """Let the kernel end this process when its parent dies, also where that was killed and can say no word."""
    ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGTERM)


def end_with_job() -> None:
    """Let this worker end when its launcher does, and now where both are dead already: no signal tells of that any more."""
    end_with_parent()
    if not Path(f"/proc/{os.environ[JOB]}").exists():
        sys.exit("the job that this worker belongs to is dead")
