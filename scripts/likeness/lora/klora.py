"""K-LoRA: one content and one style LoRA together, for every layer and step the one whose largest changes weigh more.

Training-free (arXiv 2502.18461, written from its formulas). The choice is a table of layers by steps that is worked out
once: S = sum of the K largest absolute entries of a layer's change of weight, K the product of both ranks; content is
taken where S_content / γ > S_style · S(t), with S(t) = α · t / T + β over the steps t of T. γ balances LoRAs of
different size: the mean over layers of Σ|ΔW_content| / Σ|ΔW_style|, layers above three times the mean left out once.
Because the choice hangs on the step, the result is no single file.

Axes: R rank, I inputs, O outputs, N rows of a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from likeness.errors import UserError
from likeness.lora.adapter import Lora, LoraModule
from likeness.lora.operation import check_alike
from likeness.lora.runtime import set_weights

CHUNK_ENTRIES = 2**22
OUTLIER = 3.0


@dataclass(frozen=True)
class Schedule:
    """S(t) = alpha · t / T + beta; `wraps` takes it modulo alpha, which puts style first, then content, then style."""

    alpha: float = 1.5
    beta: float = 0.5
    wraps: bool = False

    def at(self, step: int, steps: int) -> float:
        """The factor on style at a step, counted from 0, of so many."""
        value = self.alpha * step / steps + self.beta
        return value % self.alpha if self.wraps else value


CONTENT_FIRST = Schedule()
STYLE_FIRST = Schedule(beta=0.85 * 1.5, wraps=True)
"""The paper's second pattern, for styles that should also shape the beginning."""


class Mass(NamedTuple):
    """Sum of the K largest absolute entries of a change of weight, and of all of them."""

    top: float
    whole: float


def klora_table(
    content: Lora, style: Lora, steps: int, schedule: Schedule = CONTENT_FIRST
) -> dict[str, tuple[bool, ...]]:
    """For every layer that both adapt, whether content is taken at each step. Raises UserError where none is shared."""
    shared = sorted(content.modules.keys() & style.modules.keys())
    if not shared:
        raise UserError("K-LoRA: the two LoRAs adapt no layer in common, so there is nothing to choose between.")
    masses: dict[str, tuple[Mass, Mass]] = {}
    for name in shared:
        pair = (content.modules[name], style.modules[name])
        check_alike(name, pair)
        count = pair[0].rank * pair[1].rank
        masses[name] = (mass_of(pair[0], count), mass_of(pair[1], count))
    gamma = balance([(ours.whole, theirs.whole) for ours, theirs in masses.values()])
    factors = [schedule.at(step, steps) for step in range(steps)]
    return {
        name: tuple(ours.top / gamma > theirs.top * factor for factor in factors)
        for name, (ours, theirs) in masses.items()
    }


def balance(wholes: list[tuple[float, float]]) -> float:
    """γ: how much larger content is than style, over layers, without the layers that stand out."""
    ratios = [content / style for content, style in wholes if style > 0]
    if not ratios or not any(ratios):
        raise UserError("K-LoRA: one of the LoRAs changes nothing in the layers that both adapt.")
    mean = math.fsum(ratios) / len(ratios)
    kept = [ratio for ratio in ratios if ratio <= OUTLIER * mean]
    return math.fsum(kept) / len(kept)


def mass_of(module: LoraModule, count: int) -> Mass:
    """Sums of absolute entries of scale · B · A, chunk by chunk, so that the full matrix never lies in memory."""
    down_RI, up_OR = module.A_RI.float(), module.B_OR.float() * module.scale
    rows = max(1, CHUNK_ENTRIES // down_RI.shape[1])
    largest, whole = torch.empty(0), 0.0
    for start in range(0, up_OR.shape[0], rows):
        entries = (up_OR[start : start + rows] @ down_RI).abs_().flatten()
        whole += float(entries.double().sum())
        best = entries.topk(min(count, entries.numel())).values
        largest = torch.cat([largest, best]).sort(descending=True).values[:count]
    return Mass(float(largest.double().sum()), whole)


def klora_hook(
    transformer: Any, content: str, style: str, table: Mapping[str, tuple[bool, ...]], scales: Mapping[str, float]
) -> Callable[[int, float], None]:
    """What the sampler calls before each step: both adapters are on the transformer, one counts in each layer.

    `scales` holds each adapter's strength; layers that only one LoRA adapts always keep theirs.
    """

    def on_step_start(step: int, sigma: float) -> None:
        set_weights(transformer, content, lambda name: scales[content] * (name not in table or table[name][step]))
        set_weights(transformer, style, lambda name: scales[style] * (name not in table or not table[name][step]))

    return on_step_start


def shares_of_content(table: Mapping[str, tuple[bool, ...]]) -> Iterator[float]:
    """Share of the layers that take content, step by step."""
    yield from (sum(column) / len(column) for column in zip(*table.values(), strict=True))
