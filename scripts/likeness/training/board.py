"""TensorBoard's event files of a training: curves, rates and times, which tables and logs do not hold."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from likeness.training.records import LogRow

if TYPE_CHECKING:
    import numpy as np
    import torch

FOLDER = "tensorboard"


class Board:
    """Writes event files into a folder, or nothing where there is none."""

    def __init__(self, folder: Path | None, first_step: int, device: torch.device) -> None:
        self.writer, self.shown_s, self.device = None, time.monotonic(), device
        if folder is not None:
            from torch.utils.tensorboard.writer import SummaryWriter

            # Steps that a killed job wrote beyond its last resume state are taken again, and those curves thrown away.
            self.writer = SummaryWriter(str(folder), purge_step=first_step + 1)

    def show(self, step: int, row: LogRow) -> None:
        """Note a completed step."""
        if self.writer is None:
            return
        now_s = time.monotonic()
        values = {f"loss/{name}": value for name, value in row.losses.items()}
        values |= {"loss/optimised": row.loss, "step/learning_rate": row.learning_rate, "step/grad_norm": row.grad_norm}
        values |= {"step/sigma_mean": row.sigma_mean, "speed/steps_a_second": 1.0 / max(1e-9, now_s - self.shown_s)}
        self.shown_s = now_s
        for name, value in (values | memory(self.device)).items():
            self.writer.add_scalar(name, value, step)

    def show_picture(self, step: int, name: str, pixels_HWC: np.ndarray) -> None:
        """Note a picture that was drawn at a step."""
        if self.writer is not None:
            self.writer.add_image(name, pixels_HWC, step, dataformats="HWC")
            self.shown_s = time.monotonic()

    def close(self) -> None:
        """Write out what is left."""
        if self.writer is not None:
            self.writer.close()


def memory(device: torch.device) -> dict[str, float]:
    """The most memory that the tensors on a GPU took so far, in GiB; nothing on the CPU."""
    import torch

    if device.type != "cuda":
        return {}
    return {"memory/peak_gib": torch.cuda.max_memory_allocated(device) / 2**30}
