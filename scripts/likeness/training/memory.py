"""Fitting a step into memory: checkpointed blocks, and what to give up when memory runs out.

What is recomputed or split changes no more of a result than the order of a sum. A step may run the model at several
strengths of the adapter, and the backward pass comes when they are over: a block is recomputed at the strength at which
it ran.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch.utils.checkpoint import checkpoint

from likeness.errors import UserError
from likeness.training.adapter import AdapterScales

logger = logging.getLogger(__name__)
Item = TypeVar("Item")


def checkpoint_blocks(transformer: Any, every: int) -> None:
    """Recompute every so many-th block's activations in the backward pass, over double and single blocks alike."""
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    chosen = {id(block) for place, block in enumerate(blocks) if place % every == 0}

    def run(block: torch.nn.Module, *arguments: Any) -> Any:
        if id(block) in chosen:
            contexts = lambda: (nullcontext(), AdapterScales(block))  # noqa: E731
            return checkpoint(block, *arguments, use_reentrant=False, context_fn=contexts)
        return block(*arguments)

    transformer.enable_gradient_checkpointing(run)


def free_memory() -> None:
    """Give back what nothing uses any more; compiled blocks and hooks refer to each other in circles."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@dataclass
class BackOff:
    """How far a training has backed off: into how many parts a micro-batch is split, and whether blocks are recomputed.

    The effective batch stays what it was, since losses are sums over the step's samples.
    """

    transformer: Any
    largest: int
    parts: int = 1
    every: int | None = None

    def split(self, batches: Sequence[Sequence[Item]]) -> list[list[Item]]:
        """Cut every micro-batch into its parts, as equal as can be, in order."""
        found = []
        for batch in batches:
            parts = min(self.parts, len(batch))
            edges = [len(batch) * part // parts for part in range(parts + 1)]
            found += [list(batch[start:end]) for start, end in pairwise(edges)]
        return found

    def further(self, step: int) -> None:
        """Give up more after memory ran out in the step that follows `step`; UserError where nothing is left to give."""
        free_memory()
        if self.parts < self.largest:
            self.parts = min(self.largest, 2 * self.parts)
            logger.warning(
                "step %d: out of memory; every micro-batch is split into %d from now on, the step's batch stays the same",
                *(step + 1, self.parts),
            )
        elif self.every != 1:
            self.every = 1
            checkpoint_blocks(self.transformer, 1)
            logger.warning("step %d: out of memory; all blocks are recomputed from now on, which is slower", step + 1)
        else:
            raise UserError(
                f"step {step + 1}: out of memory with one sample at a time and all blocks recomputed. "
                "Lower buckets.resolution_px or rank, take the smaller model, or free the GPU."
            )


def retry(attempt: Callable[[], Any], undo: Callable[[], None], back_off: BackOff, step: int) -> Any:
    """Run an attempt until memory suffices, undoing what a failed one left and backing off in between."""
    while True:
        try:
            return attempt()
        except torch.OutOfMemoryError:
            undo()
        # Outside of the handler the failed attempt's tensors are no longer held by its traceback.
        back_off.further(step)
