"""Lease one GPU of this machine, or several for as long as a job uses them.

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

from likeness.errors import UserError


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
    with lease_devices(devices, 1, folder, poll_s) as places:
        yield places[0]


@contextlib.contextmanager
def lease_devices(
    devices: Sequence[str], count: int, folder: Path | None = None, poll_s: float = 1.0
) -> Iterator[list[int]]:
    """Hold `count` of `devices` while the block runs; yields their places in the list. Waits until so many are free.

    Holds none while it waits, so that two jobs that want several cannot wait for each other. UserError where there are
    not that many.
    """
    if count > len(devices):
        raise UserError(f"{count} GPUs are asked for, but this job may use {len(devices)}: {', '.join(devices)}.")
    folder = folder or lease_folder()
    folder.mkdir(parents=True, exist_ok=True)
    waited = False
    while True:
        with contextlib.ExitStack() as held:
            places = take(devices, count, folder, held)
            if len(places) == count:
                yield places
                return
        if not waited:
            wanted = "one" if count == 1 else str(count)
            print(f"waiting for {wanted} of {len(devices)} GPUs: {', '.join(devices)}", file=sys.stderr, flush=True)
            waited = True
        time.sleep(poll_s)


def take(devices: Sequence[str], count: int, folder: Path, held: contextlib.ExitStack) -> list[int]:
    """Lock up to `count` free devices for as long as `held` is open; returns their places."""
    places: list[int] = []
    for place, name in enumerate(devices):
        lock = FileLock(folder / f"{name.replace('/', '_')}.lock")
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=0)
            held.callback(lock.release)
            places.append(place)
        if len(places) == count:
            break
    return places


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
