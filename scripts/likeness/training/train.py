"""A whole training as one item of the store: found finished, continued, or trained, and its files put in their place.

The key holds all that decides the bytes of a checkpoint: the encoded samples with their ids and repeats, the settings,
the base model and the weights it starts from. With a constant schedule the number of steps is not among them, so more
steps continue where fewer ended, and fewer are read off. This module imports torch only when there is a step to train.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from likeness.config.losses import LossesSettings
from likeness.config.training import AUTO_FLOOR, ONLY_SPEED, ONLY_WATCHED, TrainingSettings, TrainStage
from likeness.errors import UserError
from likeness.klein.fingerprint import folder_fingerprint
from likeness.klein.load import check_trainable
from likeness.locks import writing
from likeness.program import as_about
from likeness.store import Store, item_key, sha256_of_file, write_atomically
from likeness.tables import ENCODED, LOG, MANIFEST, read_rows, write_table
from likeness.training.base import open_base
from likeness.training.held_out import held_out_losses
from likeness.training.job import Start, TrainingJob
from likeness.training.records import LogRow, TrainingFolder, open_folder
from likeness.training.views import is_plain, is_read

VERSION = 2
STEPS = "training-steps"
"""What a training counts as its items: optimizer steps."""

logger = logging.getLogger(__name__)
WITHOUT_EFFECT = (
    *("save_every", "held_out_sigmas", "buckets", "allow_distilled", "alpha"),
    *ONLY_SPEED,
    *ONLY_WATCHED,
)
"""Settings that change no bytes of a checkpoint or only its rounding, or count in another form."""
CONTENT = (
    "sample_id",
    "latents_sha256",
    "reference_latents_sha256s",
    "embedding_sha256",
    "weight_sha256",
    "empty_embedding_sha256",
    "repeats",
)


@dataclass(frozen=True)
class Outcome:
    """How many optimizer steps were computed, how many were found in the store, and whether the model was loaded."""

    computed: int
    reused: int
    models_loaded: int


def train_lora(
    stage: TrainStage, manifest: Path, encoded: Path, previous: Path | None, store: Store, output_folder: Path
) -> Outcome:
    """Train one phase of one variant and write log.parquet, steps.json and the step files.

    `previous` is the steps.json of the phase before. Raises UserError for a distilled base, a stale encoded table,
    weights that do not fit, a loss that is not finite, or an output folder that another job writes. Another job that
    trains exactly the same, of another subject or project, is waited for: its steps are then found in the store.
    """
    base = open_base(stage.base_model, offline=stage.offline)
    check_trainable(base, stage.training.allow_distilled)
    rows = rows_to_train(manifest, encoded, stage.training)
    samples = [row for row in rows if is_plain(row, stage.training)]
    settings = stage.training.resolve_steps(len(samples))
    print(steps_sum(stage.training, samples), flush=True)
    rows += rows_of_class(encoded, settings)
    start = find_start(stage.init, previous, store)
    key = training_key(rows, settings, base.fingerprint, start)
    with writing(output_folder), open_folder(store, key) as folder:
        folder.adopt(output_folder)
        missing = missing_steps(folder, settings)
        computed = 0
        if missing:
            resolved = stage.model_copy(update={"training": settings})
            computed = compute(TrainingJob(folder, resolved, rows, start, missing, key, output_folder))
        folder.finish()
        losses = measure_held_out(folder, stage, settings, encoded, base.fingerprint)
        place_files(
            folder, settings, sorted({row["sample_id"] for row in rows}), losses, base.fingerprint, output_folder
        )
    return Outcome(computed, max(0, settings.fixed_steps - computed), 1 if missing else 0)


def rows_to_train(manifest: Path, encoded: Path, settings: TrainingSettings) -> list[dict[str, Any]]:
    """The ENCODED rows of the training's views, sorted by sample id, the plain one first; UserError where they are not the
    manifest's."""
    wanted = {row["sample_id"]: row["repeats"] for row in read_rows(manifest, MANIFEST)}
    rows = [row for row in encoded_rows(encoded, settings) if not row["held_out"] and not row["regularisation"]]
    plain = [row for row in rows if is_plain(row, settings)]
    if not wanted:
        raise UserError(
            f"{manifest}: the phase has no sample, so there is nothing to train. "
            "Loosen its `where` or the quality limits; decisions.parquet says why each photo was dropped."
        )
    views = len(settings.all_resolutions_px) * (2 if settings.flip else 1)
    if {row["sample_id"]: row["repeats"] for row in plain} != wanted or len(rows) != views * len(wanted):
        raise UserError(
            f"{encoded}: it has {len(plain)} samples at resolution_px {settings.buckets.resolution_px}, which are not the "
            f"{len(wanted)} of {manifest}, or lacks further views of them. Delete it and run again; it is made anew from the store."
        )
    return sorted(
        rows, key=lambda row: (row["sample_id"], not is_plain(row, settings), row["resolution_px"], row["mirrored"])
    )


def rows_of_class(encoded: Path, settings: TrainingSettings) -> list[dict[str, Any]]:
    """The ENCODED rows of the regularisation set where the training reads it, sorted by sample id; UserError for none."""
    if settings.losses.prior_preservation is None:
        return []
    found = (row for row in encoded_rows(encoded, settings) if row["regularisation"])
    rows = [row for row in found if is_plain(row, settings)]
    if not rows:
        raise UserError(f"{encoded}: it has no pictures of the class. Delete it and run again; it is made anew.")
    return sorted(rows, key=lambda row: row["sample_id"])


def encoded_rows(encoded: Path, settings: TrainingSettings) -> list[dict[str, Any]]:
    """The ENCODED rows of all views that the training reads, those held out included."""
    return [row for row in read_rows(encoded, ENCODED) if is_read(row, settings)]


def steps_sum(asked: TrainingSettings, rows: Sequence[Mapping[str, Any]]) -> str:
    """Show where the number of steps comes from, and how often each sample is seen."""
    settings = asked.resolve_steps(len(rows))
    steps, each = settings.fixed_steps, settings.batch_size * settings.gradient_accumulation
    epoch = sum(row["repeats"] for row in rows)
    text = f"steps: {steps}"
    if asked.steps == "auto":
        text = (
            f"steps: auto = max({AUTO_FLOOR}, {settings.steps_a_sample} × {len(rows)} samples) = {steps} "
            f"at rank {settings.rank}"
        )
    return (
        f"{text}; × batch {settings.batch_size} × accumulation {settings.gradient_accumulation} = {steps * each} samples "
        f"= {steps * each / epoch:.1f} epochs of {epoch}"
    )


def find_start(init: str, previous: Path | None, store: Store) -> Start | None:
    """Find the weights to start from: the last step of the previous phase or one group of it, a LoRA file, or none for a fresh adapter."""
    kind, _, group = init.partition(":")
    if init == "scratch" or (kind == "previous" and previous is None):
        return None
    if kind != "previous":
        path = Path(init)
        if not path.is_file():
            raise UserError(f"phases.init: {init!r} is no file. Give the path of a LoRA, previous, or scratch.")
        return Start(path, sha256_of_file(path))
    assert previous is not None
    try:
        steps = json.loads(previous.read_text("utf-8"))
        last = max(steps, key=lambda entry: entry["step"])
        if group:
            last = next(one for one in [last, *last.get("others", [])] if one.get("weights") == group)
        path, sha256 = previous.parent / last["file"], last["sha256"]
    except StopIteration:
        raise UserError(f"{previous}: its last step has no group {group!r}. Train the phase before again.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{previous}: not the list of steps of a training ({error}). Train the phase before again."
        ) from error
    store.restore(sha256, path)
    return Start(path, sha256, bool(group))


def training_key(
    rows: Sequence[Mapping[str, Any]], settings: TrainingSettings, fingerprint: str, start: Start | None
) -> str:
    """Name a training by all that decides its bytes; `rows` sorted by sample id.

    Only settings that differ from their defaults are part of the name, so a new setting whose default changes nothing
    leaves the names of finished trainings alone. A default that changes results needs a new VERSION.
    """
    values = settings.model_dump(mode="json", exclude_defaults=True)
    for name in WITHOUT_EFFECT:
        values.pop(name, None)
    values.get("ema", {}).pop("evaluate", None)
    if settings.ema.decay and settings.adapter.groups:
        values["ema"]["evaluate"] = settings.ema.evaluate  # files of groups are made of these weights alone
    values["alpha"] = settings.resolved_alpha
    if settings.schedule.name == "constant":
        values.pop("steps", None)
    masked, dropout = settings.masked_loss.kind is not None, settings.caption_dropout > 0
    left_out = set() if masked else {"weight_sha256"}
    left_out |= set() if dropout else {"empty_embedding_sha256"}
    read = [name for name in CONTENT if name not in left_out]
    read += ["class_embedding_sha256"] if settings.losses.output_preservation else []
    read += ["source_latents_sha256"] if settings.losses.image_slider else []
    read += ["landmarks", "face_box"] if settings.losses.reads_faces else []
    read += ["resolution_px", "mirrored"] if settings.flip or settings.resolutions_px else []
    for name, source in settings.losses.models.items():
        values["losses"][name]["model"] = model_digest(Path(source))
    content = [
        {name: row[name] for name in read} | ({"regularisation": True} if row["regularisation"] else {}) for row in rows
    ]
    return item_key("training", VERSION, values, fingerprint, [content, start.sha256 if start else None])


def model_digest(path: Path) -> str:
    """What identifies a model's file or folder; a missing one is complained about where it is read."""
    if path.is_dir():
        return folder_fingerprint(path)
    return sha256_of_file(path) if path.is_file() else ""


def missing_steps(folder: TrainingFolder, settings: TrainingSettings) -> list[int]:
    """The wanted steps whose checkpoint is not in the store."""
    checkpoints = folder.checkpoints()
    return [step for step in settings.saved_steps if step not in checkpoints]


def compute(job: TrainingJob) -> int:
    """Train from the last good state until no wanted checkpoint is missing; returns the number of steps computed."""
    settings = job.settings
    job.folder.go_on()
    if settings.schedule.name != "constant" and not job.folder.checkpoints():
        print(
            f"training: from the start, since a {settings.schedule.name} schedule is drawn over all {settings.fixed_steps} steps"
        )
    if settings.processes > 1:
        from likeness.training.launch import launch

        return launch(job)
    from likeness.training.memory import free_memory
    from likeness.training.run import run_training

    computed = run_training(job, job.open_base())
    # Held-out losses load the model once more.
    free_memory()
    return computed


def measure_held_out(
    folder: TrainingFolder, stage: TrainStage, settings: TrainingSettings, encoded: Path, fingerprint: str
) -> dict[int, float]:
    """The held-out loss of the wanted checkpoints' evaluated files."""
    rows = [row for row in encoded_rows(encoded, settings) if row["held_out"] and is_plain(row, settings)]
    rows.sort(key=lambda row: row["sample_id"])
    checkpoints = folder.checkpoints()
    files = {step: evaluated(checkpoints[step], settings) for step in settings.saved_steps}

    def prepare() -> Any:
        from likeness.training.data import load_samples
        from likeness.training.run import prepare as prepare_training

        velocity = settings.losses.velocity.model_copy(update={"weight": 1.0})
        plain = settings.model_copy(update={"losses": LossesSettings(velocity=velocity)})
        base = open_base(stage.base_model, offline=stage.offline, dtype=settings.precision, on_gpu=True)
        return prepare_training(base, plain, load_samples(rows, plain, folder.store, base.device), None)

    return held_out_losses(files, rows, settings, fingerprint, folder.store, prepare)


def place_files(
    folder: TrainingFolder,
    settings: TrainingSettings,
    sample_ids: Sequence[str],
    held_out: Mapping[int, float],
    fingerprint: str,
    output_folder: Path,
) -> None:
    """Put the wanted step files into the output folder, remove others, and write log.parquet and steps.json."""
    checkpoints = folder.checkpoints()
    log = folder.log_up_to(settings.fixed_steps)
    assert log is not None
    steps = [step_entry(step, checkpoints[step], settings.ema.evaluate) for step in settings.saved_steps]
    files = {one["file"]: one["sha256"] for entry in steps for one in [entry, *entry.get("others", [])]}
    for name, sha256 in files.items():
        folder.store.restore(sha256, output_folder / name)
    for path in sorted(output_folder.glob("step-*.safetensors")):
        if path.name not in files:
            path.unlink()
    about = as_about("training", VERSION, settings, base=fingerprint)
    write_table(output_folder / "log.parquet", LOG, log_rows(log, sorted(sample_ids), held_out), about)
    write_atomically(output_folder / "steps.json", (json.dumps(steps, indent=1, sort_keys=True) + "\n").encode())


def step_entry(step: int, files: Mapping[str, str], evaluate: str) -> dict[str, Any]:
    """One checkpoint as steps.json lists it: the file that is evaluated, and those with other weights of that step."""
    chosen = kind_of(files, evaluate)
    entry: dict[str, Any] = {"step": step, "file": f"step-{step:06d}.safetensors", "sha256": files[chosen]}
    others = [
        {"file": f"step-{step:06d}-{kind}.safetensors", "sha256": sha256, "weights": kind}
        for kind, sha256 in files.items()
        if kind != chosen
    ]
    return entry | ({"weights": chosen, "others": others} if others else {})


def kind_of(files: Mapping[str, str], evaluate: str) -> str:
    """Which weights of a checkpoint are evaluated: the asked ones, or the raw ones where there are no others."""
    return evaluate if evaluate in files else "raw"


def evaluated(files: Mapping[str, str], settings: TrainingSettings) -> str:
    """The hash of a checkpoint's file that is evaluated."""
    return files[kind_of(files, settings.ema.evaluate)]


def log_rows(log: Sequence[LogRow], sample_ids: Sequence[str], held_out: Mapping[int, float]) -> list[dict[str, Any]]:
    """Log rows as the LOG table has them: sample places replaced by ids, one column a loss."""
    rows = []
    for index, one in enumerate(log):
        values = one._asdict()
        losses = {f"loss_{name}": value for name, value in values.pop("losses").items()}
        samples = [sample_ids[place] for place in one.samples]
        of_step = {"step": index + 1, "held_out_loss": held_out.get(index + 1)}
        rows.append({**of_step, **values, **losses, "samples": samples})
    return rows
