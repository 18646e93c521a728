"""Which samples meet in which micro-batch: the order of training as a pure function of seed, epoch and sample ids.

In every epoch each sample appears exactly as often as its repeats say. A micro-batch never mixes groups (target sizes
and reference sizes), because the model applies one sample's position ids to the whole batch; so a group whose count is
no multiple of the batch size has smaller micro-batches, as equal as can be, instead of samples seen too often or never.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from likeness.training.noise import generator_for

Group = Hashable


@dataclass(frozen=True)
class PlannedSample:
    """What the plan needs to know of a sample."""

    sample_id: str
    group: Group
    repeats: int


@dataclass
class Plan:
    """The endless sequence of micro-batches; `micro_batch(position)` is a pure function, epochs are only remembered."""

    samples: list[PlannedSample]
    batch_size: int
    seed: int
    _epochs: dict[int, list[list[str]]] = field(default_factory=dict, init=False, repr=False)

    @property
    def groups(self) -> dict[Group, list[str]]:
        """The sample ids of each group, each as often as it repeats, independent of the order of `samples`."""
        groups: dict[Group, list[str]] = {}
        for sample in sorted(self.samples, key=lambda one: one.sample_id):
            groups.setdefault(sample.group, []).extend([sample.sample_id] * sample.repeats)
        return groups

    @property
    def micro_batches_per_epoch(self) -> int:
        """How many micro-batches one epoch has; the same in every epoch."""
        return sum(math.ceil(len(ids) / self.batch_size) for ids in self.groups.values())

    def micro_batch(self, position: int) -> list[str]:
        """Sample ids of the micro-batch at `position`, counted from 0 over all epochs."""
        epoch, offset = divmod(position, self._count)
        if epoch not in self._epochs:
            self._epochs = {epoch: plan_epoch(self.groups, self.batch_size, self.seed, epoch)}
        return self._epochs[epoch][offset]

    def step_batches(self, step: int, accumulation: int) -> list[list[str]]:
        """The micro-batches of one optimizer step, counted from 0."""
        return [self.micro_batch(step * accumulation + index) for index in range(accumulation)]

    def short_batches(self) -> dict[Group, int]:
        """Groups whose count does not divide by the batch size, with their count: their micro-batches are smaller."""
        return {group: len(ids) for group, ids in self.groups.items() if len(ids) % self.batch_size}

    def __post_init__(self) -> None:
        self._count = self.micro_batches_per_epoch
        assert self._count, "a plan needs samples"


def plan_epoch(groups: Mapping[Group, list[str]], batch_size: int, seed: int, epoch: int) -> list[list[str]]:
    """Shuffle each group, cut it into micro-batches of nearly equal size, and mix the groups' micro-batches at random."""
    queues: list[list[list[str]]] = []
    for group, ids in groups.items():
        order = generator_for(seed, "order", epoch, repr(group)).permutation(len(ids))
        count = math.ceil(len(ids) / batch_size)
        edges = [len(ids) * index // count for index in range(count + 1)]
        queues.append([[ids[place] for place in order[start:end]] for start, end in pairwise(edges)])
    turns = [index for index, queue in enumerate(queues) for _ in queue]
    mixed = [turns[place] for place in generator_for(seed, "turns", epoch).permutation(len(turns))]
    waiting = [iter(queue) for queue in queues]
    return [next(waiting[index]) for index in mixed]
