"""One batch before training: does the stored base still pass the adapter the gradients of the true one?

Some forms of 8 bits have no gradient for their input, or a wrong one, without a word; training then goes on and learns
little. So the adapter's gradients are taken with the true matrices and with the stored ones, and compared.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable

import torch

from likeness.errors import UserError
from likeness.training.adapter import LAST_FACTORS, SIDE
from likeness.training.loop import Training, draw_samples, look
from likeness.training.losses.velocity import weighted_error
from likeness.training.memory import retry
from likeness.training.noise import generator_for

LEAST, LEAST_OF_BLOCK = 0.99, 0.9
"""Least cosine of all gradients, and of those of one block, which may be a small part of all."""

Gradients = dict[str, torch.Tensor]


def exchange_checked(training: Training, exchange: Callable[[], None], what: str) -> float:
    """Exchange the base's matrices by `exchange` and return the cosine of the adapter's gradients before and after.

    Raises UserError where it is below 0.99, or below 0.9 in one block.
    """
    before = probe(training)
    exchange()
    after = probe(training)
    overall = cosine(before.values(), after.values())
    blocks = {block: cosine_of_block(before, after, block) for block in sorted(set(map(block_of, before)))}
    worst = min(blocks, key=lambda block: blocks[block])
    if not (overall >= LEAST and blocks[worst] >= LEAST_OF_BLOCK):
        raise UserError(
            f"training.base_precision: {what} corrupts the gradients here: their cosine to the true ones is {overall:.3f} "
            f"({blocks[worst]:.3f} in {worst}), and at least {LEAST} ({LEAST_OF_BLOCK}) is needed. Set full, or another one."
        )
    print(f"base in {what}: gradients agree to a cosine of {overall:.4f} ({blocks[worst]:.4f} in {worst})", flush=True)
    return overall


def probe(training: Training) -> Gradients:
    """The adapter's gradients of the first sample of the next step; nothing of the training is changed.

    Last factors start at 0, where no gradient reaches the others; so they are drawn for the moment of the probe.
    """
    name = training.plan.step_batches(training.step, 1)[0][0]
    ((draw,),) = draw_samples(training, [[name]])
    kept = {key: weight.detach().clone() for key, weight in training.weights.items()}
    try:
        with torch.no_grad():
            for key, weight in training.weights.items():
                if SIDE.split(key)[1] in LAST_FACTORS:
                    values = generator_for(0, "self-test", key).standard_normal(tuple(weight.shape), dtype="float32")
                    weight.copy_(0.01 * torch.from_numpy(values))

        def attempt() -> Gradients:
            seen = look(training, [name], [draw])
            weighted_error(seen.predicted_BLC, seen.target_BLC, seen.batch.weights_BL).sum().backward()
            return {
                key: weight.grad.detach().float().clone()
                for key, weight in training.weights.items()
                if weight.grad is not None
            }

        return retry(attempt, training.forget_gradients, training.back_off, training.step)
    finally:
        training.forget_gradients()
        with torch.no_grad():
            for key, weight in training.weights.items():
                weight.copy_(kept[key])


def block_of(name: str) -> str:
    """The block that a weight belongs to, such as `transformer_blocks.0`."""
    found = re.match(r"(single_)?transformer_blocks\.\d+", name)
    return found.group() if found else name


def cosine_of_block(before: Gradients, after: Gradients, block: str) -> float:
    names = [name for name in before if block_of(name) == block]
    return cosine([before[name] for name in names], [after[name] for name in names if name in after])


def cosine(one: Iterable[torch.Tensor], other: Iterable[torch.Tensor]) -> float:
    """Cosine between two lists of tensors taken as one vector each; 0 where one of them is missing or zero."""
    firsts, seconds = list(one), list(other)
    if len(firsts) != len(seconds):
        return 0.0
    product = first_square = second_square = 0.0
    # Pair by pair: all of them at once in float64 would need more memory than the training.
    for first, second in zip(firsts, seconds, strict=True):
        first, second = first.flatten().double(), second.flatten().double()
        product += float(first @ second)
        first_square += float(first @ first)
        second_square += float(second @ second)
    norm = math.sqrt(first_square * second_square)
    return product / norm if norm > 0 else 0.0
