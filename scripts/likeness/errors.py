"""Errors that speak to the user: one sentence of what is wrong, where, what was found, what is allowed, what to do."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable
from pathlib import Path


class UserError(ValueError):
    """A mistake the user can mend; command-line programs print it without a traceback and exit with 2."""


class OldTableError(UserError):
    """A table whose columns are not those of this version; the next run writes it anew."""


class DamagedFileError(UserError):
    """A stored file whose bytes changed or are gone; the next run can make it anew, once no table says that it is there."""

    def __init__(self, message: str, sha256: str) -> None:
        super().__init__(message)
        self.sha256 = sha256


class TransientError(RuntimeError):
    """A failure of the moment (endpoint, disk, network): the job fails after paid-for items are stored; a rerun heals it."""


DISK_ERRORS = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)
)
"""What a full, closed or failing disk answers; anything else of an OSError is a mistake of ours."""


def disk_error(error: OSError, path: Path | str) -> UserError:
    """Say that a file cannot be written, and what to do."""
    return UserError(f"cannot write {path}: {error.strerror}. Free the disk or mend the permissions, then run again.")


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Say which allowed name was probably meant: `did you mean 'rank'? Allowed: alpha, rank`."""
    choices = sorted(allowed)
    close = difflib.get_close_matches(name, choices, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}Allowed: {', '.join(choices)}"
