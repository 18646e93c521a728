"""Progress for people: a bar on a terminal, a plain line now and then in a log; never in a table."""

from __future__ import annotations

import sys
import time
from types import TracebackType

LINE_EVERY_S = 10


class Progress:
    """Shows step, loss, learning rate, steps a second and time left from `first_step` to `last_step`."""

    def __init__(self, first_step: int, last_step: int) -> None:
        self.first_step, self.last_step = first_step, last_step
        self.started_s = self.shown_s = time.monotonic()
        self.bar = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(initial=self.first_step, total=self.last_step, unit="step", desc="training")
        return self

    def show(self, step: int, loss: float, learning_rate: float) -> None:
        """Note a completed step."""
        if self.bar is not None:
            self.bar.set_postfix(loss=f"{loss:.4f}", lr=f"{learning_rate:.2e}", refresh=False)
            self.bar.update()
            return
        now_s = time.monotonic()
        if now_s - self.shown_s < LINE_EVERY_S and step != self.last_step:
            return
        self.shown_s = now_s
        rate = (step - self.first_step) / max(1e-9, now_s - self.started_s)
        left_s = (self.last_step - step) / rate
        print(
            f"step {step}/{self.last_step}  loss {loss:.4f}  learning rate {learning_rate:.2e}  {rate:.2f} steps/s  {left_s:.0f} s left",
            file=sys.stderr,
            flush=True,
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.close()
