"""Flow matching, one optimizer step after the other.

A clean latent x and noise e meet at level sigma, (1 − sigma)·x + sigma·e; the model learns the velocity e − x on the
target's tokens (arXiv:2209.03003). All randomness is addressed by (seed, step, sample, occurrence), so neither a resume
nor another split into micro-batches changes it, and noise is drawn on the CPU so that the device does not either.

Axes: B samples, L target tokens, C latent channels.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
import torch

from likeness.config.training import TrainingSettings
from likeness.errors import UserError
from likeness.klein.family import Layout
from likeness.training.data import TrainingData
from likeness.training.losses.make import make_objective
from likeness.training.losses.objective import Report, Seen, gradients_if, predict
from likeness.training.memory import BackOff, checkpoint_blocks, retry
from likeness.training.noise import generator_for
from likeness.training.plan import Plan
from likeness.training.records import LogRow
from likeness.training.schedule import lr_at
from likeness.training.sigmas import draw_sigma, shift_for
from likeness.training.team import ALONE, Team
from likeness.training.views import choose_views, sample_of


class Follower(Protocol):
    """What moves along with the weights after every optimizer step, such as their average."""

    def update(self, weights: Mapping[str, torch.Tensor], step: int) -> None: ...


@dataclass
class Training:
    """A training in memory; `step` is the number of completed optimizer steps, everywhere."""

    transformer: Any
    weights: dict[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    data: TrainingData
    settings: TrainingSettings
    scheduler_config: Mapping[str, Any]
    layout: Layout
    followers: Sequence[Follower] = ()
    vae: Any = None
    team: Team = ALONE
    step: int = 0
    log: list[LogRow] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.plan = Plan(self.data.planned(), self.settings.batch_size, self.settings.seed)
        of_class = self.data.planned(of_class=True)
        self.class_plan = Plan(of_class, self.settings.batch_size, self.settings.seed) if of_class else None
        self.back_off = BackOff(self.transformer, self.settings.batch_size)
        if self.settings.gradient_checkpointing:
            self.back_off.every = self.settings.checkpoint_every
            checkpoint_blocks(self.transformer, self.settings.checkpoint_every)
        self.objective = make_objective(self.settings.losses, self.data, self.vae)
        self.places = {sample_id: place for place, sample_id in enumerate(sorted(self.data.samples))}

    def own_samples(self, whole: Sequence[Sequence[str]]) -> list[int]:
        """The places of this process's samples among those of a step."""
        starts = [0, *accumulate(len(ids) for ids in whole)]
        return [place for own in self.team.share(len(whole)) for place in range(starts[own], starts[own + 1])]

    def shown(self, whole: Sequence[Sequence[str]]) -> list[list[str]]:
        """The names of the views in which a step's samples are shown; pictures of the class have but one."""
        views = choose_views(whole, self.settings, self.step)
        of_class = [self.data.samples[ids[0]].of_class for ids in whole]
        return [list(ids) if plain else names for ids, names, plain in zip(whole, views, of_class, strict=True)]

    def step_batches(self, step: int) -> list[list[str]]:
        """The micro-batches of one optimizer step: the subject's, then those of its class at their ratio."""
        count, prior = self.settings.gradient_accumulation, self.settings.losses.prior_preservation
        whole = self.plan.step_batches(step, count)
        if self.class_plan is None or prior is None:
            return whole
        first, last = (int(place * count * prior.ratio) for place in (step, step + 1))
        return whole + [self.class_plan.micro_batch(place) for place in range(first, last)]

    @property
    def has_learned(self) -> bool:
        """Whether a step had a rate above 0; a warm-up begins with one at 0."""
        return any(row.learning_rate > 0 for row in self.log)

    def forget_gradients(self) -> None:
        """Undo what a step that failed half-way has added up."""
        self.optimizer.zero_grad(set_to_none=True)
        self.objective.grad_ratios()


def train(training: Training, last_step: int, on_step: Callable[[Training], None]) -> None:
    """Train up to `last_step`, calling `on_step` after every step, when log and weights are those of that step."""
    while training.step < last_step:
        training.log.append(train_step(training))
        training.step += 1
        for follower in training.followers:
            follower.update(training.weights, training.step)
        on_step(training)


def train_step(training: Training) -> LogRow:
    """One optimizer step over all its micro-batches; raises UserError before the update where the loss is not finite."""
    settings, step = training.settings, training.step
    whole = training.step_batches(step)
    ids = [sample_id for batch in whole for sample_id in batch]
    table = retry(lambda: gradients(training, whole), training.forget_gradients, training.back_off, step)
    table = training.team.unite(training.weights.values(), table, training.own_samples(whole), len(ids))
    grad_norm = torch.nn.utils.clip_grad_norm_(training.weights.values(), settings.max_grad_norm)
    learning_rate = lr_at(step, settings.schedule, settings.learning_rate, settings.fixed_steps)
    row = log_row(training, ids, table, learning_rate, grad_norm)
    check_finite(row.loss, row.grad_norm, step + 1, ids)
    for group in training.optimizer.param_groups:
        group["lr"] = learning_rate
    training.optimizer.step()
    training.optimizer.zero_grad(set_to_none=True)
    return row


def gradients(training: Training, whole: Sequence[Sequence[str]]) -> torch.Tensor:
    """Add up the gradient of a step over this process's micro-batches.

    Returns a table (losses, samples) of what was seen, with the noise levels as its last row.
    """
    counts = training.data.count_kinds(one for ids in whole for one in ids)
    own = training.team.share(len(whole))
    shown = training.shown(whole)
    drawn = draw_samples(training, shown, own)
    pairs = [list(zip(shown[place], draws, strict=True)) for place, draws in zip(own, drawn, strict=True)]
    report = Report()
    for batch in training.back_off.split(pairs):
        with gradients_if(training.objective.learns_from_prediction):
            seen = look(training, *zip(*batch, strict=True))
        terms, values = training.objective(seen, counts)
        training.objective.backward(terms, list(training.weights.values()), training.step)
        report.extend(values)
    sigmas = [draw.sigma for draws in drawn for draw in draws]
    table = report.table().double()
    return torch.cat([table, torch.tensor([sigmas], dtype=table.dtype).to(table.device)])


def look(training: Training, sample_ids: Sequence[str], draws: Sequence[Draw]) -> Seen:
    """Show one micro-batch to the model."""
    batch = training.data.batch(sample_ids, [draw.without_caption for draw in draws])
    noise_BLC = torch.stack([draw.noise_LC for draw in draws]).to(training.data.device)
    sigmas = tuple(draw.sigma for draw in draws)
    sigma_B = torch.tensor(sigmas, device=noise_BLC.device)
    noisy_BLC = torch.lerp(batch.latents_BLC, noise_BLC, sigma_B[:, None, None])
    return Seen(
        training.transformer, batch, noise_BLC, sigmas, predict(training.transformer, batch, noisy_BLC, sigma_B)
    )


def log_row(
    training: Training, sample_ids: Sequence[str], table: torch.Tensor, learning_rate: float, grad_norm: torch.Tensor
) -> LogRow:
    """What the log keeps of a step; the only moment at which the device is waited for."""
    count = table.shape[1]
    *rows, norm = [*table.flatten().tolist(), float(grad_norm)]
    *losses, sigmas = [rows[start : start + count] for start in range(0, len(rows), count)]
    by_loss = dict(zip((term.name for term in training.objective.terms), losses, strict=True))
    means = training.objective.means(by_loss, training.data.count_kinds(sample_ids))
    return LogRow(
        training.objective.weigh(means),
        learning_rate,
        norm,
        math.fsum(sigmas) / count,
        [training.places[one] for one in sample_ids],
        means,
        [training.objective.weigh({name: by_loss[name][place] for name in by_loss}) for place in range(count)],
        sigmas,
        training.objective.grad_ratios(),
    )


@dataclass(frozen=True)
class Draw:
    """What chance decides for one sample of one step."""

    noise_LC: torch.Tensor
    sigma: float
    without_caption: bool


def draw_samples(
    training: Training, batches: Sequence[Sequence[str]], own: Container[int] | None = None
) -> list[list[Draw]]:
    """Draw noise, noise level and caption dropout for every sample of a step, of which views are named.

    With `own`, only for the micro-batches at these places; the others count as seen.
    """
    seen: Counter[str] = Counter()
    drawn = []
    for place, names in enumerate(batches):
        occurrences = []
        for name in names:
            occurrences.append(seen[sample_of(name)])
            seen[sample_of(name)] += 1
        if own is None or place in own:
            drawn.append([draw_sample(training, *one) for one in zip(names, occurrences, strict=True)])
    return drawn


def draw_sample(training: Training, name: str, occurrence: int) -> Draw:
    """Draw for one sample as it is shown; `occurrence` counts how often it was already seen within the step."""
    settings = training.settings
    generator = generator_for(settings.seed, "sample", training.step, sample_of(name), occurrence)
    shown = training.data.view(name)
    shape = shown.latents_LC.shape
    without_caption = bool(generator.random() < settings.caption_dropout) and not shown.of_class
    sigma = draw_sigma(settings.sigma, generator, shift_for(settings.sigma, shape[0], training.scheduler_config))
    noise_LC = torch.from_numpy(generator.standard_normal(tuple(shape), dtype=np.float32))
    if settings.noise_offset:
        noise_LC += settings.noise_offset * torch.from_numpy(generator.standard_normal(shape[1], dtype=np.float32))
    return Draw(noise_LC, sigma, without_caption)


def check_finite(loss: float, grad_norm: float, step: int, sample_ids: Sequence[str]) -> None:
    """Raise UserError where loss or gradient are not finite; nothing was updated then."""
    if math.isfinite(loss) and math.isfinite(grad_norm):
        return
    raise UserError(
        f"step {step}: the loss is {loss} and the gradient norm {grad_norm}; training stopped before they reached the adapter. "
        f"Samples of the step: {', '.join(one[:12] for one in dict.fromkeys(sample_ids))}. "
        "Lower learning_rate, or set precision: float32; the last good checkpoint is kept."
    )
