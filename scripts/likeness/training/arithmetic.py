"""Which kernels a training may use: those that give the same bits every time, and TF32 where float32 is more than needed.

Both are switches of the whole process. On the CPU neither changes a bit.
"""

from __future__ import annotations

import os

import torch

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
REPEATABLE_WORKSPACES = (":4096:8", ":16:8")
"""What cuBLAS needs to repeat its bits, and torch asks for; it is read with the first product."""


def choose_arithmetic(precision: str, with_pictures: bool) -> None:
    """Allow only kernels that repeat their bits, and TF32 beside a base that is itself computed in fewer bits.

    With losses that look at pictures torch may only warn: the gradients of sampling and resizing pictures have no kernel
    that repeats its bits on GPUs. It then takes attention's faster gradient too, which does not repeat them either.
    """
    if os.environ.get(WORKSPACE) not in REPEATABLE_WORKSPACES:
        os.environ[WORKSPACE] = REPEATABLE_WORKSPACES[0]
    torch.use_deterministic_algorithms(True, warn_only=with_pictures)
    # Filling fresh memory would cost bandwidth and guards only against reading it unwritten.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore
    torch.backends.cuda.matmul.allow_tf32 = precision != "float32"


def leave_arithmetic() -> None:
    """Torch's own choices again: the fastest kernels, and float32 in full."""
    torch.use_deterministic_algorithms(False)
    torch.backends.cuda.matmul.allow_tf32 = False
