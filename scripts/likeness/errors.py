"""Errors that speak to the user: one sentence of what is wrong, where, what was found, what is allowed, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake the user can mend; command-line programs print it without a traceback and exit with 2."""


class TransientError(RuntimeError):
    """A failure of the moment (endpoint, disk, network): the job fails after paid-for items are stored; a rerun heals it."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Say which allowed name was probably meant: `did you mean 'rank'? Allowed: alpha, rank`."""
    choices = sorted(allowed)
    close = difflib.get_close_matches(name, choices, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}Allowed: {', '.join(choices)}"
