"""One writer a folder of results: its lock, which refuses a second one and says who holds it.

The lock is an flock on a hidden file beside the folder, so the system frees it when its holder dies in any way, and the
folder holds nothing but results. Snakemake's own locks are no help here: they are not asked with
`--nolock`, and outlive a crash while a job of the crashed run may still write.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from likeness.errors import UserError


def lock_of(folder: Path) -> Path:
    """The lock file of a folder, the same by whichever link it is reached."""
    whole = folder.resolve()
    return whole.with_name(f".{whole.name}.lock")


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Hold a folder's lock while the block writes there; UserError naming the holder where another process does."""
    folder.mkdir(parents=True, exist_ok=True)
    with lock_of(folder).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise UserError(
                f"{folder} is being written by {holder}: another run works on it, or a job that outlived its run. "
                "Wait until it ends, or end it, then run again."
            ) from None
        note(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n")
        try:
            yield
        finally:
            note(file.fileno(), "")


def note(descriptor: int, text: str) -> None:
    """Write who holds the lock into its file; a full disk costs the name, not the lock."""
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.write(descriptor, text.encode())
