"""What is optimised: a sum of losses, each with its weight and its window of noise levels.

A loss gives one value a sample, in float32. The sum over a step's samples is divided once by their number, so a step's
loss is the mean over its samples however it is split into micro-batches, and the logged loss is the optimised one.
Samples outside of a loss's window count as 0 and are not shown to it, so it costs nothing for them. A loss of weight 0 is
only watched: it is computed without a gradient, and so is the prediction where no other loss reads it. Every loss is about
the subject's samples, except one about those of its class (prior preservation); each kind is divided by its own number.

Axes: B samples, L target tokens, C latent channels, T text tokens, D embedding width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import torch

from likeness.config.losses import LossSettings
from likeness.klein.velocity import predict_velocity
from likeness.training.adapter import without_adapter
from likeness.training.data import Batch

WATCHED_EVERY = 25
"""Steps between two comparisons of the terms' gradients."""

Terms = dict[str, torch.Tensor]
"""Weighted losses of a micro-batch by name; their sum is optimised."""


@dataclass(frozen=True)
class Seen:
    """One micro-batch as the model saw it: what every loss looks at.

    `sigmas` are the noise levels as plain numbers, so that a window is decided without waiting for the device.
    """

    transformer: Any
    batch: Batch
    noise_BLC: torch.Tensor
    sigmas: tuple[float, ...]
    predicted_BLC: torch.Tensor

    @cached_property
    def sigma_B(self) -> torch.Tensor:
        return torch.tensor(self.sigmas, device=self.noise_BLC.device)

    @cached_property
    def noisy_BLC(self) -> torch.Tensor:
        return torch.lerp(self.batch.latents_BLC, self.noise_BLC, self.sigma_B[:, None, None])

    @cached_property
    def target_BLC(self) -> torch.Tensor:
        """The true velocity, noise minus image."""
        return self.noise_BLC - self.batch.latents_BLC

    @cached_property
    def clean_BLC(self) -> torch.Tensor:
        """The image that the prediction implies, x̂0 = x − σ·v̂, in float32."""
        return self.noisy_BLC.float() - self.sigma_B[:, None, None] * self.predicted_BLC.float()

    def predict(self, **changes: Any) -> torch.Tensor:
        """The adapted model's velocity for the same noisy latents, with fields of the batch replaced."""
        return predict(self.transformer, replace(self.batch, **changes), self.noisy_BLC, self.sigma_B)

    def predict_without_adapter(self, **changes: Any) -> torch.Tensor:
        """The bare model's velocity, without gradient."""
        with torch.no_grad(), without_adapter(self.transformer):
            return self.predict(**changes)

    def subset(self, places: Sequence[int]) -> Seen:
        """Only the samples at these places of the micro-batch."""
        if len(places) == len(self.sigmas):
            return self
        index = list(places)
        sigmas = tuple(self.sigmas[place] for place in index)
        return Seen(
            self.transformer, self.batch.subset(index), self.noise_BLC[index], sigmas, self.predicted_BLC[index]
        )


def predict(transformer: Any, batch: Batch, noisy_BLC: torch.Tensor, sigma_B: torch.Tensor) -> torch.Tensor:
    """The velocity that the model sees in a noised micro-batch."""
    return predict_velocity(
        transformer,
        noisy_BLC,
        sigma_B,
        batch.embeddings_BTD,
        batch.target_ids,
        batch.text_ids,
        batch.reference_BRC,
        batch.reference_ids,
    )


def gradients_if(wanted: bool) -> AbstractContextManager[Any]:
    """Within it no gradient is prepared, unless one is wanted."""
    return nullcontext() if wanted else torch.no_grad()


class Loss(Protocol):
    """One loss: a value for each sample of the micro-batch, (B,), in float32, with gradient."""

    def __call__(self, seen: Seen) -> torch.Tensor: ...


@dataclass(frozen=True)
class Term:
    """A loss with its name, weight and window."""

    name: str
    settings: LossSettings
    loss: Loss
    of_class: bool = False
    """Whether it is about samples of the class instead of the subject's."""
    reads_prediction: bool = True
    """Whether it reads the prediction for the samples' own captions, and not only predictions of its own."""

    @property
    def is_watched(self) -> bool:
        """Whether its value is logged and nothing is learned from it."""
        return self.settings.weight == 0

    def places(self, seen: Seen) -> list[int]:
        """Which samples of a micro-batch it is about, and are in its window."""
        low, high = self.settings.sigma_min, self.settings.sigma_max
        asked = seen.batch.of_class == self.of_class
        return [place for place, sigma in enumerate(seen.sigmas) if asked and low <= sigma <= high]

    def values(self, seen: Seen) -> torch.Tensor:
        """The loss of each sample; 0 for those that it is not about."""
        inside = self.places(seen)
        if not inside:
            return torch.zeros(len(seen.sigmas), device=seen.noise_BLC.device)
        values_B = self.loss(seen.subset(inside))
        if len(inside) == len(seen.sigmas):
            return values_B
        return torch.zeros(len(seen.sigmas), device=values_B.device, dtype=values_B.dtype).index_put(
            (torch.tensor(inside, device=values_B.device),), values_B
        )


@dataclass
class Report:
    """What is watched: per loss and sample the unweighted value, as tensors that still lie on the device."""

    values: dict[str, list[torch.Tensor]] = field(default_factory=dict)

    def extend(self, other: Report) -> None:
        for name, values in other.values.items():
            self.values.setdefault(name, []).extend(values)

    def table(self) -> torch.Tensor:
        """All values as one tensor (losses, samples of the step)."""
        return torch.stack([torch.cat(values) for values in self.values.values()])


@dataclass
class Objective:
    """The losses of a training in the order of the log."""

    terms: tuple[Term, ...]

    @property
    def learns_from_prediction(self) -> bool:
        """Whether the prediction for the samples' own captions needs a gradient."""
        return any(term.reads_prediction and not term.is_watched for term in self.terms)

    def __call__(self, seen: Seen, samples_of_step: Mapping[bool, int]) -> tuple[Terms, Report]:
        """Weighted terms whose sum is this micro-batch's part of the step's loss, and the values behind them.

        `samples_of_step` counts the step's samples by whether they are of the class.
        """
        weighted: Terms = {}
        report = Report()
        # What watched losses derive from the prediction has no gradient, so the others must not share it.
        apart = replace(seen, predicted_BLC=seen.predicted_BLC.detach())
        for term in self.terms:
            with gradients_if(not term.is_watched):
                values_B = term.values(apart if term.is_watched else seen) * seen.batch.scale_B
                part = term.settings.weight * values_B.sum() / max(1, samples_of_step[term.of_class])
            # The gradient of a watched loss is 0, not absent: a step that sees nothing else is a step all the same.
            weighted[term.name] = part.requires_grad_(bool(term.places(seen))) if term.is_watched else part
            report.values[term.name] = [values_B.detach()]
        return weighted, report

    def means(self, values: Mapping[str, Sequence[float]], samples_of_step: Mapping[bool, int]) -> dict[str, float]:
        """The mean of each loss over the samples that it is about; 0 where there were none."""
        return {term.name: math.fsum(values[term.name]) / max(1, samples_of_step[term.of_class]) for term in self.terms}

    def weigh(self, values: dict[str, float]) -> float:
        """The optimised loss from the unweighted ones."""
        return sum(term.settings.weight * values[term.name] for term in self.terms)

    def backward(self, terms: Terms, weights: Sequence[torch.nn.Parameter], step: int) -> None:
        """Add the gradient of the terms' sum to the adapter; none where no sample lies in any window."""
        total = torch.stack(list(terms.values())).sum()
        if not total.requires_grad:
            return
        total.backward()
        for weight in weights:
            if weight.requires_grad and weight.grad is None:
                weight.grad = torch.zeros_like(weight)

    def grad_ratios(self) -> list[float]:
        """Norm of each term's gradient over that of the first, in this step; empty where they were not compared."""
        return []


class WatchedObjective(Objective):
    """The same sum, whose terms' gradients are compared now and then; that step costs a backward pass a term."""

    def __init__(self, terms: tuple[Term, ...]) -> None:
        super().__init__(terms)
        self._sums: dict[str, list[torch.Tensor]] = {}

    def backward(self, terms: Terms, weights: Sequence[torch.nn.Parameter], step: int) -> None:
        if step % WATCHED_EVERY:
            super().backward(terms, weights, step)
            return
        trained = [weight for weight in weights if weight.requires_grad]
        for name, term in terms.items():
            if not term.requires_grad:
                continue
            found = torch.autograd.grad(term, trained, retain_graph=True, allow_unused=True)
            grads = [torch.zeros_like(one) if grad is None else grad for one, grad in zip(trained, found, strict=True)]
            sums = self._sums.setdefault(name, [torch.zeros_like(one) for one in trained])
            for weight, grad, total in zip(trained, grads, sums, strict=True):
                weight.grad = grad.clone() if weight.grad is None else weight.grad + grad
                total += grad

    def grad_ratios(self) -> list[float]:
        norms = {name: float(torch.stack([one.norm() for one in sums]).norm()) for name, sums in self._sums.items()}
        self._sums = {}
        first = norms.get(self.terms[0].name, 0.0)
        return [norms.get(term.name, 0.0) / first if first else 0.0 for term in self.terms] if norms else []
