"""Lease one GPU of this machine for as long as a job uses it.

Snakemake's `gpu` resource limits how many jobs run but assigns no device, and is lost when a user passes other
resources. A lease is an flock on a file a device in a folder of this machine: the kernel frees it when its holder dies.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout


def lease_folder() -> Path:
    """Where this machine's leases lie; shared by all jobs of one user, but under Slurm by those of one allocation.

    Slurm hands out the devices itself, and may call the one of every job `0`.
    """
    allocation = os.environ.get("SLURM_JOB_ID")
    name = f"likeness-gpu-{os.getuid()}"
    return Path(tempfile.gettempdir()) / (f"{name}-{allocation}" if allocation else name)


def visible_devices(count: int, visible: str | None) -> list[str]:
    """Names of the devices that this process may use: the entries of CUDA_VISIBLE_DEVICES, else 0 to count - 1."""
    names = [name.strip() for name in (visible or "").split(",") if name.strip()]
    return names[:count] if names else [str(index) for index in range(count)]


@contextlib.contextmanager
def lease_device(devices: Sequence[str], folder: Path | None = None, poll_s: float = 1.0) -> Iterator[int]:
    """Hold one of `devices` while the block runs; yields its place in the list. Waits while all are taken."""
    folder = folder or lease_folder()
    folder.mkdir(parents=True, exist_ok=True)
    waited = False
    while True:
        for place, name in enumerate(devices):
            lock = FileLock(folder / f"{name.replace('/', '_')}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            try:
                yield place
            finally:
                lock.release()
            return
        if not waited:
            print(f"waiting for one of {len(devices)} GPUs: {', '.join(devices)}", file=sys.stderr, flush=True)
            waited = True
        time.sleep(poll_s)


@functools.cache
def device_of_job() -> str:
    """Name of the device that this process computes on: `cpu` where torch finds no GPU, else a `cuda:N` leased until it ends.

    The answer comes from torch, never from CUDA_VISIBLE_DEVICES, which a scheduler may set for a GPU that torch cannot use.
    """
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    devices = visible_devices(torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES"))
    held = contextlib.ExitStack()
    atexit.register(held.close)
    return f"cuda:{held.enter_context(lease_device(devices))}"
