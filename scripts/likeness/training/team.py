"""Several processes that train one adapter together, each on its own device: who does what, and how it is added up.

Each process takes its share of a step's micro-batches. Losses are divided by the samples of the whole step, so gradients
are summed over the processes, once a step, and every process then takes the same optimizer step on its own copy of the
adapter. That is the arithmetic of accumulation in one process but for the order of a sum. Gradients are not exchanged
while they are computed, as DistributedDataParallel does: a step has several backward passes (micro-batches, losses that
are watched, passes without the adapter), and the adapter's gradients are small.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from likeness.errors import UserError


@dataclass(frozen=True)
class Team:
    """How many processes there are, and which of them this is; the first one alone writes."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, count: int) -> range:
        """The places of this process's micro-batches among a step's."""
        return range(self.rank, count, self.size)

    def unite(
        self, weights: Iterable[torch.Tensor], table: torch.Tensor, places: Sequence[int], count: int
    ) -> torch.Tensor:
        """Sum the gradients of all processes in place, and put their samples' values into one table in float64.

        `table` is (values, own samples), the result (values, `count`); `places` are those of the own samples.
        """
        table = table.double()
        if self.size == 1:
            return table
        whole = torch.zeros(table.shape[0], count, dtype=table.dtype, device=table.device)
        whole[:, list(places)] = table
        trained = [weight for weight in weights if weight.requires_grad]
        for weight in trained:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        gradients = [weight.grad for weight in trained if weight.grad is not None]
        summed = add_up(torch.cat([gradient.flatten().float() for gradient in gradients]))
        for gradient, part in zip(gradients, summed.split([one.numel() for one in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))
        return add_up(whole)

    def check_equal(self, weights: Iterable[torch.Tensor], step: int) -> None:
        """Raise UserError where the processes' copies of the adapter are no longer the same, bit for bit."""
        if self.size == 1:
            return
        sums = torch.stack([weight.detach().double().sum() for weight in weights])
        theirs = add_up(sums if self.is_first else torch.zeros_like(sums))
        differ = add_up((sums != theirs).any().double().reshape(1))
        if differ.item():
            raise UserError(
                f"step {step}: the processes no longer hold the same adapter, so something on this machine computes "
                "differently from time to time. Set training.processes: 1, and look after the GPUs."
            )

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            from accelerate.utils import wait_for_everyone

            wait_for_everyone()


ALONE = Team()


def add_up(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all processes, the same bits in each."""
    from accelerate.utils import reduce

    summed = reduce(tensor, "sum")
    assert isinstance(summed, torch.Tensor)
    return summed
