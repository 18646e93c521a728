"""Ask whether results can be written at all, so that a full or closed disk is said once and by its name.

A job that cannot write often cannot write its log either; what it would have said there is said by the run itself.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from likeness.errors import disk_error
from likeness.store import temporary_beside

PROBE_BYTES = 65536


def closed_disk(folder: Path) -> str | None:
    """One sentence on why nothing can be written below a folder, or None; a folder that is absent is made."""
    probe = temporary_beside(folder / "probe")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(bytes(PROBE_BYTES))
    except OSError as error:
        free_mb = shutil.disk_usage(existing(folder)).free / 1e6
        return f"{disk_error(error, f'{folder}/ ({free_mb:.1f} MB free)')} What is finished stays."
    finally:
        if probe.exists():
            probe.unlink()
    return None


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())
