"""A training by another trainer's own command, as one item of the store.

The dataset and config are rendered with the sample ids as names and hashed: that hash, the command and the base model
are the key. The trainer works in a folder of its own below the store, which stays until it has ended, so that the
trainer may resume there. What it leaves is found by its own file names, read whatever the format, and written again as
checkpoints that diffusers loads with the right scale. A finished one needs neither the trainer nor torch.

    <store>/external/<key>/{data,config,output,…}   <store>/external/<key>.lock
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from likeness.config.exports import ExternalStage, TrainerCommand
from likeness.config.training import TrainingSettings
from likeness.errors import UserError
from likeness.exports.export import export_samples, exporter_of
from likeness.exports.files import LIST_NAME, WARNINGS_NAME
from likeness.exports.samples import read_samples
from likeness.exports.settings import Output, Trainer
from likeness.klein.load import BaseModel
from likeness.locks import writing
from likeness.program import as_about
from likeness.store import Item, Store, item_key, remove_tree, write_atomically
from likeness.tables import LOG, MANIFEST, read_rows, write_table
from likeness.training.base import open_base

VERSION = 1
STAGE = "external"
NAME_LENGTH = 16
OURS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LIKENESS", "OMP_NUM_THREADS")
"""Variables of our own environment that would lead another program astray."""


def train_external(stage: ExternalStage, manifest: Path, images: Path, store: Store, output_folder: Path) -> None:
    """Train one phase of one variant with its trainer and write log.parquet, steps.json and the step files.

    The store counts one item of the stage `external`, computed or reused. Raises UserError where the command fails, leaves
    no LoRA file, or leaves one that does not fit the base model.
    """
    training = stage.export.training.resolve_steps(len(read_rows(manifest, MANIFEST)))
    stage = stage.model_copy(update={"export": stage.export.model_copy(update={"training": training})})
    trainer = exporter_of(stage.export.trainer).TRAINER
    base = open_base(stage.base_model, offline=stage.offline)
    rendered = render(stage, manifest, images, store)
    try:
        key = training_key(stage, rendered, base.fingerprint)
        item = store.load(STAGE, key)
        if item is None:
            with work_lock(store.root / STAGE / f"{key}.lock") as lock:
                item = store.load(STAGE, key) or train(stage, trainer, base, rendered, store, key, lock)
        else:
            store.reused[STAGE] += 1
    finally:
        remove_tree(rendered)
    place_files(item, stage, base.fingerprint, store, output_folder)


def render(stage: ExternalStage, manifest: Path, images: Path, store: Store) -> Path:
    """Render the dataset and config into a new folder below the store; samples are called by their ids.

    So a renamed photo leads to the same files, and trains nothing.
    """
    samples = [replace(sample, name=sample.sample_id[:NAME_LENGTH]) for sample in read_samples(manifest, images)]
    folder = store.root / STAGE / f".{uuid.uuid4().hex[:12]}"
    try:
        for line in export_samples(stage.export, samples, manifest, store, folder):
            print(f"warning: {line}")
    except BaseException:
        remove_tree(folder)
        raise
    return folder


def training_key(stage: ExternalStage, rendered: Path, fingerprint: str) -> str:
    """Name a training by all that its trainer reads; the wording of our warnings is not among it."""
    listed = json.loads((rendered / LIST_NAME).read_text("utf-8"))
    files = {entry["path"]: entry["sha256"] for entry in listed if entry["path"] != WARNINGS_NAME}
    settings = {
        "trainer": stage.export.trainer,
        "command": stage.command.command,
        "environment": stage.command.environment,
    }
    return item_key(STAGE, VERSION, settings, fingerprint, files)


@contextmanager
def work_lock(path: Path) -> Iterator[int]:
    """Hold a training's lock and yield its descriptor; the trainer inherits it, so it is held until that ends as well.

    A job that is killed may leave its trainer behind; the next one waits for it here instead of writing beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting: another job, or the trainer that it left behind, trains exactly this", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def train(
    stage: ExternalStage, trainer: Trainer, base: BaseModel, rendered: Path, store: Store, key: str, lock: int
) -> Item:
    """Run the command in the training's folder, convert what it leaves, keep it in the store, and clear the folder."""
    training = stage.export.training
    folder = store.root / STAGE / key
    if not folder.exists():
        rendered.rename(folder)
    run_command(stage.command, trainer.title, folder, lock)
    assert trainer.output is not None
    checkpoints = find_checkpoints(folder, trainer, trainer.output, training)
    provenance = {"trainer": stage.export.trainer, "training": key, "base_model": base.fingerprint}
    files = {
        f"step-{step:06d}.safetensors": convert(path, folder, trainer, training, base, provenance)
        for step, path in checkpoints.items()
    }
    log = read_log(folder, training.gradient_accumulation if trainer.output.counts_micro_batches else 1)
    item = store.save(STAGE, key, {"log": log}, files)
    store.computed[STAGE] += 1
    remove_tree(folder)
    return item


def run_command(command: TrainerCommand, title: str, folder: Path, lock: int) -> None:
    """Run a trainer's command line in its folder; what it prints goes where ours goes. UserError where it fails."""
    print(f"{title} in {folder}: {command.command}", flush=True)
    shell = ["bash", "-euo", "pipefail", "-c", command.command]
    done = subprocess.run(shell, cwd=folder, env=environment_of(command), pass_fds=(lock,), check=False)
    if done.returncode != 0:
        raise UserError(
            f"{title} ended with exit code {done.returncode}; its own words are above. Its folder {folder} is kept: "
            "mend the command or the cause and run again, and it goes on there if it can."
        )


def environment_of(command: TrainerCommand) -> dict[str, str]:
    """The environment of the trainer: ours without what belongs to our interpreter, the leased GPU, then its own."""
    ours = str(Path(sys.executable).parent)
    found = {name: value for name, value in os.environ.items() if name not in OURS}
    found["PATH"] = os.pathsep.join(entry for entry in found.get("PATH", "").split(os.pathsep) if entry != ours)
    return found | leased_gpu() | command.environment


def leased_gpu() -> dict[str, str]:
    """CUDA_VISIBLE_DEVICES for the one GPU that this job holds; nothing on a machine without one."""
    from likeness.lease import device_of_job, visible_devices

    device = device_of_job()
    if device == "cpu":
        return {}
    place = int(device.partition(":")[2])
    return {"CUDA_VISIBLE_DEVICES": visible_devices(place + 1, os.environ.get("CUDA_VISIBLE_DEVICES"))[place]}


def find_checkpoints(folder: Path, trainer: Trainer, output: Output, training: TrainingSettings) -> dict[int, Path]:
    """The trainer's LoRA files by optimizer step, found by its own file names; UserError for none.

    A file without a step in its name is the last one, and counts only where no numbered file reaches the last step.
    """
    numbered: dict[int, Path] = {}
    last: Path | None = None
    micro_batches = training.gradient_accumulation if output.counts_micro_batches else 1
    for path in sorted(folder.rglob("*.safetensors")):
        match = re.fullmatch(output.pattern, path.relative_to(folder).as_posix())
        if match and match.group("step"):
            numbered[math.ceil(int(match.group("step")) / micro_batches)] = path
        elif match:
            last = path
    if last is not None and max(numbered, default=0) < training.fixed_steps:
        numbered[training.fixed_steps] = last
    if not numbered:
        raise UserError(
            f"{trainer.title} ended well but left no LoRA file whose path matches {output.pattern} in {folder}. "
            "Do its overrides name another folder or format for its output?"
        )
    return dict(sorted(numbered.items()))


def convert(
    path: Path,
    folder: Path,
    trainer: Trainer,
    training: TrainingSettings,
    base: BaseModel,
    provenance: Mapping[str, str],
) -> bytes:
    """A trainer's LoRA file in diffusers' layout with its scale, verified by loading it through diffusers.

    Some trainers keep alpha nowhere in the file: where it is not told, it is the one that was asked for, or the rank for
    trainers that take none.
    """
    from likeness.lora.adapter import check_fits
    from likeness.lora.files import read_lora, save_lora, verify_lora

    lora = read_lora(path)
    if base.layout is not None:
        check_fits(lora, base.layout, f"{trainer.title}'s {path.name}")
    if trainer.takes_alpha and not tells_scale(path):
        modules = {
            name: module._replace(scale=training.resolved_alpha / training.rank)
            for name, module in lora.modules.items()
        }
        lora = replace(lora, modules=modules)
    ranks = {module.rank for module in lora.modules.values()}
    if not ranks <= {training.rank, 3 * training.rank}:
        print(f"warning: {path.name} has rank {', '.join(map(str, sorted(ranks)))}, but {training.rank} was asked for")
    converted = folder / f"converted-{path.parent.name}-{path.name}"
    save_lora(converted, lora, provenance)
    verify_lora(converted, base)
    return converted.read_bytes()


def tells_scale(path: Path) -> bool:
    """Whether a file holds alpha: in its metadata, or as a tensor beside each module."""
    from safetensors import safe_open

    from likeness.lora.formats import METADATA_KEY

    with safe_open(path, "pt") as file:
        return METADATA_KEY in (file.metadata() or {}) or any(key.endswith(".alpha") for key in file.keys())  # noqa: SIM118


def read_log(folder: Path, micro_batches: int) -> list[dict[str, Any]]:
    """Loss and learning rate by optimizer step, from the event files that the trainer wrote for TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows: dict[int, dict[str, Any]] = {}
    for events in sorted({path.parent for path in folder.rglob("events.out.tfevents.*")}):
        found = EventAccumulator(str(events), size_guidance={"scalars": 0}).Reload()
        tags = found.Tags()["scalars"]
        for column, tag in (("loss", loss_tag(tags)), ("learning_rate", rate_tag(tags))):
            for event in found.Scalars(tag) if tag else []:
                step = math.ceil(event.step / micro_batches)
                rows.setdefault(step, {"step": step})[column] = float(event.value)
    return [rows[step] for step in sorted(rows) if step > 0 and all(map(math.isfinite, numbers(rows[step])))]


def numbers(row: Mapping[str, Any]) -> list[float]:
    return [value for value in row.values() if isinstance(value, float)]


def loss_tag(tags: list[str]) -> str | None:
    """The tag of the training loss: not of a validation, nor of an average; the shortest of those that are left."""
    found = [
        tag for tag in tags if "loss" in tag.lower() and not re.search(r"val|eval|av[eg]|smooth|epoch", tag.lower())
    ]
    return min(found, key=lambda tag: (len(tag), tag), default=None)


def rate_tag(tags: list[str]) -> str | None:
    found = [tag for tag in tags if re.search(r"(^|[/_ -])lr($|[/_ -])|learning.?rate", tag.lower())]
    return min(found, key=lambda tag: (len(tag), tag), default=None)


def place_files(item: Item, stage: ExternalStage, fingerprint: str, store: Store, output_folder: Path) -> None:
    """Put the step files into the output folder, remove others, and write log.parquet and steps.json."""
    with writing(output_folder):
        steps = []
        for name, sha256 in sorted(item.files.items()):
            store.restore(sha256, output_folder / name)
            steps.append({"step": int(name[5:11]), "file": name, "sha256": sha256})
        for path in sorted(output_folder.glob("step-*.safetensors")):
            if path.name not in item.files:
                path.unlink()
        about = as_about(STAGE, VERSION, stage.export.training, base=fingerprint, trainer=stage.export.trainer)
        write_table(output_folder / "log.parquet", LOG, item.record["log"], about)
        write_atomically(output_folder / "steps.json", (json.dumps(steps, indent=1, sort_keys=True) + "\n").encode())
