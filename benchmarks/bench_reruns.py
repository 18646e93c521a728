"""Measure what a rerun and a training cost beside what they cannot do without, on the miniature.

- **A selected photo changed and brought back**: the whole way from the edit to the published LoRA, in the wall and CPU
  seconds of Snakemake with all its jobs. The second run finds everything in the store: 0 training steps.
- **Training against a plain loop**: the whole training, with drawing, logging, saving and verifying, beside the bare
  step (the same model's forward, backward and optimizer step on the same batches, which are ready) times the number of
  steps, plus loading. Libraries are imported before, by a training of one step.

    python benchmarks/bench_reruns.py --json figures.json            # builds the miniature first: three CPU minutes
    python benchmarks/bench_reruns.py --miniature models/miniature   # takes one that is built
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HOUSE = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(HOUSE / "scripts"), str(HOUSE / "benchmarks")]

from bench_scale import Cost, measure  # noqa: E402
from figures import show  # noqa: E402

TARGET = "results/robin/lora/published.json"
CONFIG = """\
shards: 2
gpus_per_job: 0
defaults:
  base_model: miniature
  masks: {backend: grabcut, model: null, working_side_px: 128}
  captions: {backend: facts}
  photo: {min_side_px: 96}
  limits: {min_face_px: 24, min_sharpness: 5}
  training:
    rank: 8
    init: gaussian
    batch_size: 8
    learning_rate: 8.0e-3
    steps: 100
    save_every: 50
    precision: float32
    schedule: {name: constant}
    buckets: {resolution_px: 16, bucket_step_px: 2, max_aspect: 1.0, reference_resolution_px: 16}
  evaluation:
    recogniser: miniature
    detection_size_px: 96
    seeds: [1, 2]
    sampling_steps: 4
    guidance_scale: 1.0
    width_px: 16
    height_px: 16
    enlarge_to_px: 128
    strengths: [1.0]
    precision: float32
  prompts:
    red: {text: "{trigger} {class}, close portrait, facing the camera, red background", split: select}
    blue: {text: "{trigger} {class}, close portrait, facing the camera, blue background", split: report}
subjects:
  robin:
    recipe: character
    trigger: r0bin
    photos: data
    held_out: 1
    faces: {model: miniature, detection_size_px: 96, min_identity: 0.3, crop: {min_pixels: 32, size_px: 64}}
    choice: {max_bleed: null, min_detected: 0}
"""
SAVE_EVERY = 250
"""Steps between two checkpoints of the measured training: the default."""


@dataclass(frozen=True)
class Spent:
    """Wall and CPU seconds of this process."""

    wall_s: float
    cpu_s: float


def spend(work: Callable[[], Any]) -> Spent:
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    work()
    return Spent(time.perf_counter() - wall_s, time.process_time() - cpu_s)


def draw_photos(folder: Path, count: int) -> None:
    """Draw photos of one person in random scenes."""
    import numpy as np
    from PIL import Image

    from likeness.miniature.world import render, sample_identities, sample_scenes

    rng = np.random.default_rng(5)
    identity = sample_identities(1, rng)
    images_NHWC = render(
        np.repeat(identity, count, axis=0), sample_scenes(count, rng, framing="close"), 160, 160
    ).images_NHWC
    folder.mkdir(parents=True)
    for index, image_HWC in enumerate(images_NHWC):
        Image.fromarray((image_HWC * 255).round().astype(np.uint8)).save(folder / f"photo-{index:02d}.png")


def snakemake(folder: Path, target: str, cores: int) -> Cost:
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(HOUSE / "Snakefile"), "--cores", str(cores)]
    return measure([*command, "--quiet", "--", target], folder)


def selected_photo(folder: Path) -> Path:
    """A photo that the training uses."""
    from likeness.tables import DECISIONS, read_rows

    rows = read_rows(folder / "results/robin/phases/decisions.parquet", DECISIONS)
    return folder / "data" / f"{min(row['id'] for row in rows if row['rule'] == 'kept')}.png"


def steps_computed(folder: Path) -> int:
    """Training steps of the last run, by its log."""
    log = (folder / "results/.logs/train_lora/robin/main/main.log").read_text(encoding="utf-8")
    last = next(line for line in reversed(log.splitlines()) if line.startswith("work: "))
    return int(last.partition("training-steps ")[2].split()[0])


def bench_revert(folder: Path, cores: int) -> dict[str, Any]:
    """A fresh run, one with a selected photo changed, and one with it brought back."""
    from PIL import Image, ImageEnhance

    costs = {"fresh": snakemake(folder, TARGET, cores)}
    lora = folder / "results" / "robin" / "lora" / "robin.safetensors"
    published = lora.read_bytes()
    path = selected_photo(folder)
    before = path.read_bytes()
    ImageEnhance.Brightness(Image.open(path)).enhance(0.97).save(path)
    costs["selected photo changed"] = snakemake(folder, TARGET, cores)
    assert steps_computed(folder) > 0 and lora.read_bytes() != published
    path.write_bytes(before)
    costs["brought back"] = snakemake(folder, TARGET, cores)
    assert steps_computed(folder) == 0 and lora.read_bytes() == published
    return {name: asdict(cost) for name, cost in costs.items()}


def bench_training(folder: Path, steps: int) -> dict[str, Any]:
    """A training of so many steps beside a plain loop, both in this process; `folder` is a project that ran."""
    os.chdir(folder)
    from likeness.config.training import TrainStage
    from likeness.program import set_threads

    stage = stage_of(steps)
    set_threads(stage.training.cpu_threads)

    from likeness.store import Store
    from likeness.training.base import open_base
    from likeness.training.data import load_samples
    from likeness.training.run import prepare
    from likeness.training.train import rows_to_train, train_lora

    assert isinstance(stage, TrainStage)
    manifest, encoded = Path("results/robin/phases/main.parquet"), Path("results/robin/encoded/main/main.parquet")
    rows = rows_to_train(manifest, encoded, stage.training)

    def load() -> Any:
        base = open_base(stage.base_model, offline=True, dtype=stage.training.precision, on_gpu=True)
        data = load_samples(rows, stage.training, Store(Path("results/.store")), base.device)
        return prepare(base, stage.training, data, None)

    few = steps // 2
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary)
        store = Store(out / "store")
        shutil.copytree("results/.store", store.root)
        train_lora(stage_of(1), manifest, encoded, None, store, out / "first")  # imports all that a training imports
        loaded = spend(load)
        before = spend(lambda: plain_loop(load(), few))
        whole = spend(lambda: train_lora(stage, manifest, encoded, None, store, out / "train"))
        assert len(list((out / "train").glob("*.safetensors"))) == -(-steps // SAVE_EVERY)
    after = spend(lambda: plain_loop(load(), steps - few))
    bare = {
        kind: getattr(before, kind) + getattr(after, kind) - 2 * getattr(loaded, kind) for kind in ("wall_s", "cpu_s")
    }
    return {
        "steps": steps,
        "load": asdict(loaded),
        "bare_steps": bare,
        "training": asdict(whole),
        "training_over_bare_cpu": (whole.cpu_s - loaded.cpu_s) / bare["cpu_s"],
        "training_over_bare_wall": (whole.wall_s - loaded.wall_s) / bare["wall_s"],
    }


def stage_of(steps: int) -> Any:
    """The configured training under another seed, which no store knows, and with so many steps."""
    from likeness.config.training import TrainStage
    from likeness.program import read_settings
    from likeness.workflow import Plan

    settings = Plan.load([], {}).train_lora(SimpleNamespace(subject="robin", variant="main", phase="main"))
    stage = read_settings(settings, TrainStage)
    changes = {"seed": steps, "steps": steps, "save_every": SAVE_EVERY}
    return stage.model_copy(update={"training": stage.training.model_copy(update=changes)})


def plain_loop(training: Any, steps: int) -> None:
    """What any training must do: forward, loss, backward and optimizer step, on batches that are ready before."""
    import torch

    from likeness.training.losses.objective import predict

    ready = []
    for step in range(training.plan.micro_batches_per_epoch):
        batch = training.data.batch(ids := training.plan.micro_batch(step), [False] * len(ids))
        noise_BLC = torch.randn_like(batch.latents_BLC)
        sigma_B = torch.rand(len(ids))
        noisy_BLC = torch.lerp(batch.latents_BLC, noise_BLC, sigma_B[:, None, None])
        ready.append((batch, noisy_BLC, sigma_B, noise_BLC - batch.latents_BLC))
    for step in range(steps):
        batch, noisy_BLC, sigma_B, target_BLC = ready[step % len(ready)]
        (predict(training.transformer, batch, noisy_BLC, sigma_B) - target_BLC).square().mean().backward()
        training.optimizer.step()
        training.optimizer.zero_grad(set_to_none=True)


def bench(folder: Path, miniature: Path | None, photos: int, steps: int, cores: int) -> dict[str, Any]:
    """All figures of one project in an empty folder."""
    (folder / "config").mkdir(parents=True)
    (folder / "config" / "config.yaml").write_text(CONFIG, encoding="utf-8")
    draw_photos(folder / "data", photos)
    if miniature is None:
        snakemake(folder, "models/miniature/base.json", cores)
        snakemake(folder, "models/miniature/pack.json", cores)
    else:
        shutil.copytree(miniature, folder / "models" / "miniature")
    figures: dict[str, Any] = {"photos": photos, "cores": cores, "revert": bench_revert(folder, cores)}
    trained = folder / "training.json"
    command = [sys.executable, __file__, "--training-of", str(folder), "--steps", str(steps), "--json", str(trained)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return figures | {"training": json.loads(trained.read_text(encoding="utf-8"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--miniature", type=Path, help="a folder models/miniature that is built already")
    parser.add_argument("--photos", type=int, default=12, help="how many photos")
    parser.add_argument("--steps", type=int, default=500, help="steps of the measured training; a multiple of 250")
    parser.add_argument("--cores", type=int, default=2, help="Snakemake's --cores")
    parser.add_argument("--folder", type=Path, help="make the project here, and keep it; must not exist")
    parser.add_argument("--training-of", type=Path, help="measure only the training, of a project that ran")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    if args.training_of:
        figures = bench_training(args.training_of, args.steps)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            folder = args.folder or Path(temporary) / "project"
            figures = bench(folder.resolve(), args.miniature, args.photos, args.steps, args.cores)
    show(figures, args.json)


if __name__ == "__main__":
    main()
