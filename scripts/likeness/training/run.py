"""The part of a training that computes: load the model, add the adapter, resume, train, save."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from likeness.config.training import TrainingSettings
from likeness.klein.load import BaseModel
from likeness.klein.targets import target_regex
from likeness.lora.files import read_lora, verify_lora, write_lora
from likeness.training.adapter import add_adapter, load_weights
from likeness.training.data import TrainingData, load_samples
from likeness.training.loop import Training, train
from likeness.training.optimizers import make_optimizer
from likeness.training.progress import Progress
from likeness.training.records import TrainingFolder
from likeness.training.state import pack_state, unpack_state

STATE_EVERY_S = 600
"""A resume state is also saved after so many seconds: large models take long to a checkpoint. It changes no result."""

logger = logging.getLogger(__name__)


def run_training(
    folder: TrainingFolder,
    base: BaseModel,
    settings: TrainingSettings,
    rows: Sequence[Mapping[str, Any]],
    start: Path | None,
    missing: Sequence[int],
    key: str,
) -> int:
    """Train until the last missing checkpoint is saved; returns the number of optimizer steps computed."""
    make_deterministic()
    torch.set_num_threads(settings.cpu_threads)
    data = load_samples(rows, settings, folder.store, base.device)
    training = prepare(base, settings, data, start)
    warn_of_short_batches(training)
    save = saver(folder, base, training, key)
    record = folder.last_state(up_to=min(missing))
    if record is not None:
        unpack_state(folder.state_path(record.step).read_bytes(), record.scalars, training.weights, training.optimizer)
        training.step, training.log = record.step, list(record.log)
    first_step, last_step = training.step, max(missing)
    print_start(training, first_step, last_step)
    wanted, saved_at = set(missing), [time.monotonic()]
    if first_step in wanted:
        save(training, True)
    with Progress(first_step, last_step) as progress:

        def on_step(now: Training) -> None:
            progress.show(now.step, now.log[-1].loss)
            overdue = time.monotonic() - saved_at[0] > STATE_EVERY_S
            if now.step in wanted or overdue:
                save(now, now.step in wanted)
                saved_at[0] = time.monotonic()

        train(training, last_step, on_step)
    return last_step - first_step


def prepare(base: BaseModel, settings: TrainingSettings, data: TrainingData, start: Path | None) -> Training:
    """Add the adapter to the transformer, load the weights it starts from, and make a fresh optimizer."""
    transformer = base.transformer
    weights = add_adapter(transformer, settings, base.layout)
    if start is not None:
        load_weights(weights, starting_weights(start, settings), str(start))
    if settings.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    optimizer = make_optimizer(weights.values(), settings.optimizer)
    config = base.config_of("scheduler", "scheduler_config.json")
    return Training(transformer, weights, optimizer, data, settings, config)


def starting_weights(path: Path, settings: TrainingSettings) -> dict[str, torch.Tensor]:
    """Read a LoRA as adapter weights in float32; where its scale differs from ours, the up matrices make up for it."""
    own_scale = settings.resolved_alpha / settings.rank
    found: dict[str, torch.Tensor] = {}
    for name, module in read_lora(path).modules.items():
        found[f"{name}.lora_A.weight"] = module.A_RI.float()
        found[f"{name}.lora_B.weight"] = module.B_OR.float() * (module.scale / own_scale)
    return found


def saver(folder: TrainingFolder, base: BaseModel, training: Training, key: str) -> Callable[[Training, bool], None]:
    """Make the function that saves a training's state, and its checkpoint where one is wanted."""

    def save(now: Training, with_checkpoint: bool) -> None:
        state, scalars = pack_state(now.weights, now.optimizer)
        sha256 = save_checkpoint(folder, base, now, key) if with_checkpoint else None
        folder.save(now.step, now.log, sha256, state, scalars)

    return save


def save_checkpoint(folder: TrainingFolder, base: BaseModel, training: Training, key: str) -> str:
    """Write the adapter as a LoRA file in the base's precision, load it back through diffusers, keep it in the store."""
    settings = training.settings
    dtype = getattr(torch, settings.precision)
    path = folder.folder / f".step-{training.step:06d}.safetensors.tmp"
    tensors = {name: weight.detach().to("cpu", dtype) for name, weight in training.weights.items()}
    provenance = {"likeness.training": key, "likeness.step": str(training.step), "likeness.base": base.fingerprint}
    regex = target_regex(settings.targets, base.layout)
    write_lora(path, tensors, settings.rank, settings.resolved_alpha, regex, provenance)
    verified = verify_lora(path, base, len(tensors) // 2)
    sha256 = folder.store.save_blob(path.read_bytes())
    path.unlink()
    assert sha256 == verified.sha256
    return sha256


def print_start(training: Training, first_step: int, last_step: int) -> None:
    """Say what is trained, in one line."""
    values = sum(weight.numel() for weight in training.weights.values())
    modules = len(training.weights) // 2
    resumed = f", resumed at step {first_step}" if first_step else ""
    print(
        f"training: {modules} modules, {values:,} values, {len(training.data.samples)} samples, to step {last_step}{resumed}",
        flush=True,
    )


def warn_of_short_batches(training: Training) -> None:
    """Warn where a bucket cannot fill its micro-batches, so that steps see fewer samples than asked for."""
    for group, count in training.plan.short_batches().items():
        logger.warning(
            "%d samples an epoch in the bucket of %s tokens do not divide by batch_size %d: some micro-batches are smaller",
            *(count, "×".join(map(str, group[0])), training.settings.batch_size),  # pyright: ignore
        )


def make_deterministic() -> None:
    """Ask for kernels that give the same bits every time; on the CPU they do anyway."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling fresh memory would cost bandwidth and guards only against reading it unwritten.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore
