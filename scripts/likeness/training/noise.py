"""Randomness with an address: a draw is a function of what it is for, never of what was drawn before.

A run that was killed and resumed therefore draws the same as one that was not, and a step draws the same however it is
split into micro-batches. numpy's counter-based Philox is used because torch's generators differ between devices.
"""

from __future__ import annotations

import hashlib

import numpy as np


def generator_for(seed: int, stream: str, *address: int | str) -> np.random.Generator:
    """Make the generator of one address, such as (seed, "noise", step, sample id, occurrence)."""
    digest = hashlib.sha256("\n".join(map(str, (seed, stream, *address))).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
