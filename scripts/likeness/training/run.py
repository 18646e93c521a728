"""The part of a training that computes: load the model, add the adapter, resume, train, save."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

import torch

from likeness.config.training import TrainingSettings
from likeness.klein.family import Layout
from likeness.klein.load import BaseModel
from likeness.training.adapter import add_adapter, load_weights
from likeness.training.arithmetic import choose_arithmetic
from likeness.training.board import FOLDER as BOARD_FOLDER
from likeness.training.board import Board
from likeness.training.data import TrainingData, load_samples
from likeness.training.ema import Ema
from likeness.training.files import save_weights, starting_weights, verify_weights
from likeness.training.frozen import quantise
from likeness.training.job import TrainingJob
from likeness.training.loop import Training, train
from likeness.training.optimizers import make_optimizer, weights_to_save
from likeness.training.progress import Progress
from likeness.training.records import TrainingFolder
from likeness.training.self_test import exchange_checked
from likeness.training.shape import group_modules, predict_file_bytes, shape_adapter
from likeness.training.speed import load_transformer, load_vae, speed_up
from likeness.training.state import pack_state, unpack_state
from likeness.training.team import ALONE, Team

STATE_EVERY_S = 600
"""A resume state is also saved after so many seconds: large models take long to a checkpoint. It changes no result."""

logger = logging.getLogger(__name__)


def run_training(job: TrainingJob, base: BaseModel, team: Team = ALONE) -> int:
    """Train until the last missing checkpoint is saved; returns the number of optimizer steps computed.

    TensorBoard's files and pictures go below the folder `job.watched`. Of several processes (`team`) each calls this, and
    the first one alone saves and reports.
    """
    training = resumed(job, base)
    training.team = team
    save = saver(job.folder, base, training, job.key)
    team.wait()
    first_step, last_step, wanted = training.step, job.last_step, set(job.missing)
    if not team.is_first:
        train(training, last_step, lambda now: check_equal(now, wanted))
        return last_step - first_step
    warn_of_short_batches(training)
    print_start(training, base.layout, first_step, last_step)
    if first_step in wanted:
        save(training, True)
    with watching(job.watched, training, base, last_step) as (show, draw):
        saved_at = [time.monotonic()]

        def on_step(now: Training) -> None:
            show(now)
            check_equal(now, wanted)
            overdue = time.monotonic() - saved_at[0] > STATE_EVERY_S
            if now.step in wanted or overdue:
                save(now, now.step in wanted)
                saved_at[0] = time.monotonic()
            # What is only looked at comes after what must not be lost.
            if now.step in wanted:
                draw(now)

        train(training, last_step, on_step)
    return last_step - first_step


def resumed(job: TrainingJob, base: BaseModel) -> Training:
    """The training in memory as its last state has it, or fresh."""
    torch.set_num_threads(job.settings.cpu_threads)
    data, start = load_samples(job.rows, job.settings, job.folder.store, base.device), job.start
    training = prepare(base, job.settings, data, start.path if start else None, start is not None and start.is_group)
    record = job.last_state()
    if record is not None:
        state = job.folder.state_path(record.step).read_bytes()
        unpack_state(state, record.scalars, training.weights, training.optimizer, ema_of(training))
        training.step, training.log = record.step, list(record.log)
    return training


@contextlib.contextmanager
def watching(
    folder: Path, training: Training, base: BaseModel, last_step: int
) -> Iterator[tuple[Callable[[Training], None], Callable[[Training], None]]]:
    """Give what shows a step on the terminal and to TensorBoard, and what draws pictures at a checkpoint."""
    settings = training.settings
    board = Board(folder / BOARD_FOLDER if settings.tensorboard else None, training.step, base.device)
    with contextlib.closing(board), Progress(training.step, last_step) as progress:

        def show(now: Training) -> None:
            row = now.log[-1]
            progress.show(now.step, row.loss, row.learning_rate)
            board.show(now.step, row)

        def draw(now: Training) -> None:
            if settings.samples:
                from likeness.training.preview import FOLDER, draw_samples_of

                draw_samples_of(now, base, settings.samples, folder / FOLDER, board)

        yield show, draw


def check_equal(training: Training, wanted: Collection[int]) -> None:
    """Before a checkpoint, make sure that all processes hold the same adapter."""
    if training.step in wanted:
        training.team.check_equal(training.weights.values(), training.step)


def prepare(
    base: BaseModel, settings: TrainingSettings, data: TrainingData, start: Path | None, partial: bool = False
) -> Training:
    """Add the adapter to the transformer, load the weights it starts from, and make a fresh optimizer.

    With `partial`, modules that the starting file lacks start fresh. A base that is stored in 8 bits is brought to them
    here, and checked; UserError where it corrupts gradients.
    """
    choose_arithmetic(settings.precision, bool(settings.losses.models))
    transformer = load_transformer(base, settings)
    weights = add_adapter(transformer, settings, base.layout)
    if start is not None:
        found = starting_weights(start, settings, base.layout)
        load_weights(weights, found, str(start), partial=partial or settings.adapter.freeze is not None)
    optimizer = make_optimizer(weights.values(), settings.optimizer)
    config = base.config_of("scheduler", "scheduler_config.json")
    followers = [Ema(weights, settings.ema.decay)] if settings.ema.decay else []
    vae = load_vae(base, settings) if settings.losses.models else None
    training = Training(transformer, weights, optimizer, data, settings, config, base.layout, followers, vae)
    kind = settings.base_precision
    if kind != "full":
        exchange_checked(training, lambda: quantise(transformer, kind), kind)
    speed_up(transformer, settings)
    return training


def ema_of(training: Training) -> Ema | None:
    """The average of a training's weights, where it keeps one."""
    return next((one for one in training.followers if isinstance(one, Ema)), None)


def saver(folder: TrainingFolder, base: BaseModel, training: Training, key: str) -> Callable[[Training, bool], None]:
    """Make the function that saves a training's state, and its checkpoint where one is wanted."""

    def save(now: Training, with_checkpoint: bool) -> None:
        state, scalars = pack_state(now.weights, now.optimizer, ema_of(now))
        files = save_checkpoint(folder, base, now, key) if with_checkpoint else {}
        folder.save(now.step, now.log, files, state, scalars)

    return save


def save_checkpoint(folder: TrainingFolder, base: BaseModel, training: Training, key: str) -> dict[str, str]:
    """Write the raw adapter, and its average where there is one, as LoRA files; returns their hashes by kind."""
    ema = ema_of(training)
    kinds: dict[str, Mapping[str, torch.Tensor]] = {"raw": training.weights}
    if ema:
        kinds["ema"] = ema.weights
    best = kinds.get(training.settings.ema.evaluate, training.weights)
    with weights_to_save(training.optimizer, list(training.weights.values())):
        files = {kind: save_file(folder, base, training, key, weights) for kind, weights in kinds.items()}
        for group, modules in group_modules(training.settings, base.layout).items():
            files[group] = save_file(folder, base, training, key, best, modules)
    return files


def save_file(
    folder: TrainingFolder,
    base: BaseModel,
    training: Training,
    key: str,
    weights: Mapping[str, torch.Tensor],
    only: set[str] | None = None,
) -> str:
    """Write a file of all modules or of those `only`, load it back through diffusers, keep it in the store."""
    path = folder.folder / f".step-{training.step:06d}.safetensors.tmp"
    provenance = {"likeness.training": key, "likeness.step": str(training.step), "likeness.base": base.fingerprint}
    modules = save_weights(path, weights, training.settings, base.layout, provenance, only)
    verified = verify_weights(path, base, modules, not training.has_learned)
    sha256 = folder.store.save_blob(path.read_bytes())
    path.unlink()
    assert sha256 == verified.sha256
    return sha256


def print_start(training: Training, layout: Layout, first_step: int, last_step: int) -> None:
    """Say what is trained and how large its files will be, in one line."""
    trained = sum(weight.numel() for weight in training.weights.values() if weight.requires_grad)
    modules, size_mb = (
        len(shape_adapter(training.settings, layout)),
        predict_file_bytes(training.settings, layout) / 1e6,
    )
    resumed = f", resumed at step {first_step}" if first_step else ""
    print(
        f"training: {modules} modules, {trained:,} values, files of {size_mb:.1f} MB, {len(training.data.samples)} samples, "
        f"to step {last_step}{resumed}",
        flush=True,
    )


def warn_of_short_batches(training: Training) -> None:
    """Warn where a bucket cannot fill its micro-batches, so that steps see fewer samples than asked for."""
    for group, count in training.plan.short_batches().items():
        logger.warning(
            "%d samples an epoch in the bucket of %s tokens do not divide by batch_size %d: some micro-batches are smaller",
            *(count, "×".join(map(str, group[0])), training.settings.batch_size),  # pyright: ignore
        )
