"""A program that stands in for another trainer: it reads the config that was rendered for that one, and leaves LoRA files under
that one's file names and in its key format. What it "learns" is a given LoRA, grown in equal parts from step to step.

Run in the folder of an export:  python stand_in.py TRAINER LORA
"""

from __future__ import annotations

import json
import os
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml
from safetensors.numpy import load_file, save_file
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from likeness.lora.names import original_names

Tensors = dict[str, np.ndarray]
Factors = dict[str, tuple[np.ndarray, np.ndarray]]
"""Down and up matrix of each of diffusers' modules."""


class Plan(NamedTuple):
    """What a config asks for, in optimizer steps."""

    steps: int
    save_every: int
    rank: int
    alpha: float


def separate(factors: Factors, key: str) -> Tensors:
    """Two tensors a module, in diffusers' names; `{side}` is A or B."""
    tensors = {}
    for name, (down_RI, up_OR) in factors.items():
        tensors[key.format(name=name, side="A")] = down_RI
        tensors[key.format(name=name, side="B")] = up_OR
    return tensors


def fused(factors: Factors) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Modules of the original code: query, key and value share one down matrix, as where they are trained as one."""
    for original, own in original_names(100, 100).items():
        if all(name in factors for name in own):
            yield original, factors[own[0]][0], np.concatenate([factors[name][1] for name in own])


def comfyui(factors: Factors) -> Tensors:
    tensors = {}
    for name, down_RI, up_OR in fused(factors):
        tensors |= {f"diffusion_model.{name}.lora_A.weight": down_RI, f"diffusion_model.{name}.lora_B.weight": up_OR}
    return tensors


def kohya(factors: Factors, alpha: float) -> Tensors:
    tensors = {}
    for name, down_RI, up_OR in fused(factors):
        stem = f"lora_unet_{name.replace('.', '_')}"
        tensors |= {f"{stem}.lora_down.weight": down_RI, f"{stem}.lora_up.weight": up_OR}
        tensors[f"{stem}.alpha"] = np.array(alpha, np.float32)
    return tensors


def simpletuner(grown: Callable[[int], Factors]) -> None:
    config = json.loads(Path("config/config.json").read_text())
    plan = Plan(
        config["max_train_steps"], config["checkpoint_step_interval"], config["lora_rank"], config["lora_alpha"]
    )
    for step in steps_of(plan):
        tensors = separate(grown(step), "transformer.{name}.lora_{side}.weight")  # alpha is told nowhere
        write(f"{config['output_dir']}/checkpoint-{step}/pytorch_lora_weights.safetensors", tensors)
        write(f"{config['output_dir']}/checkpoint-{step}/optimizer.bin", {})
    write(f"{config['output_dir']}/pytorch_lora_weights.safetensors", tensors)
    events(Path("output/tensorboard"), {"train_loss": plan.steps, "learning_rate": plan.steps})


def ai_toolkit(grown: Callable[[int], Factors]) -> None:
    job = yaml.safe_load(Path("config/ai-toolkit.yaml").read_text())["config"]
    [process] = job["process"]
    plan = Plan(process["train"]["steps"], process["save"]["save_every"], process["network"]["linear"], 0)
    folder = f"{process['training_folder']}/{job['name']}"
    for step in steps_of(plan):
        name = job["name"] if step == plan.steps else f"{job['name']}_{step:09d}"
        write(f"{folder}/{name}.safetensors", comfyui(grown(step)))
    write(f"{folder}/optimizer.pt", {})


def diffusion_pipe(grown: Callable[[int], Factors]) -> None:
    config = tomllib.loads(Path("config/diffusion-pipe.toml").read_text())
    assert "alpha" not in config["adapter"]  # it would end with an error
    plan = Plan(config["max_steps"], config["save_every_n_steps"], config["adapter"]["rank"], 0)
    for step in steps_of(plan):
        write(f"{config['output_dir']}/20260101_00-00-00/step{step}/adapter_model.safetensors", comfyui(grown(step)))
        write(f"{config['output_dir']}/20260101_00-00-00/global_step{step}/layer_00.safetensors", {})
    events(Path(config["output_dir"]) / "20260101_00-00-00", {"train/loss": plan.steps, "train/epoch_loss": 1})


def musubi_tuner(grown: Callable[[int], Factors]) -> None:
    config = tomllib.loads(Path("config/musubi-tuner.toml").read_text())
    plan = Plan(config["max_train_steps"], config["save_every_n_steps"], config["network_dim"], config["network_alpha"])
    for step in steps_of(plan):
        name = "" if step == plan.steps else f"-step{step:08d}"
        write(f"{config['output_dir']}/{config['output_name']}{name}.safetensors", kohya(grown(step), plan.alpha))
        write(f"{config['output_dir']}/{config['output_name']}{name}-state/model.safetensors", {})
    events(Path(config["logging_dir"]) / "20260101", {"loss/current": plan.steps, "loss/average": 1, "lr/unet": 1})


def diffsynth_studio(grown: Callable[[int], Factors]) -> None:
    flags = dict(re.findall(r"--(\w+) (\S+)", Path("config/train.sh").read_text()))
    rows = json.loads(Path(flags["dataset_metadata_path"]).read_text())
    micro_batches = len(rows) * int(flags["dataset_repeat"])
    plan = Plan(micro_batches, int(flags["save_steps"]), int(flags["lora_rank"]), 0)
    for step in steps_of(plan):
        write(
            f"{flags['output_path']}/step-{step}.safetensors",
            separate(grown(step), "{name}.lora_{side}.default.weight"),
        )
    events(Path(flags["output_path"]) / "tensorboard_log", {"loss": plan.steps})


def onetrainer(grown: Callable[[int], Factors]) -> None:
    config = json.loads(Path("config/onetrainer.json").read_text())
    samples = sum(
        int(concept["balancing"])
        * len([path for path in Path(concept["path"]).glob("*.png") if "-mask" not in path.name])
        for concept in json.loads(Path(config["concept_file_name"]).read_text())
    )
    plan = Plan(config["epochs"] * samples, config["save_every"], config["lora_rank"], config["lora_alpha"])
    for step in steps_of(plan):
        tensors = separate(grown(step), "transformer.{name}.lora_{side}.weight")
        names = {name.rpartition(".lora_")[0] for name in tensors}
        tensors |= {f"{name}.alpha": np.array(plan.alpha, np.float32) for name in names}
        saved = f"save/2026-01-01_00-00-00-save-{step}-{step // samples}-{step % samples}.safetensors"
        write(f"{config['workspace_dir']}/{saved}", tensors)
    write(config["output_model_destination"], tensors)


def diffusers(grown: Callable[[int], Factors]) -> None:
    flags = dict(re.findall(r"--(\w+) (\S+)", Path("config/train.sh").read_text()))
    names = ("max_train_steps", "checkpointing_steps", "rank", "lora_alpha")
    plan = Plan(*(int(flags[name]) for name in names))
    about = json.dumps({"transformer.r": plan.rank, "transformer.lora_alpha": plan.alpha})
    for step in steps_of(plan):
        tensors = separate(grown(step), "transformer.{name}.lora_{side}.weight")
        folder = flags["output_dir"] if step == plan.steps else f"{flags['output_dir']}/checkpoint-{step}"
        write(f"{folder}/pytorch_lora_weights.safetensors", tensors, {"lora_adapter_metadata": about})


TRAINERS = {
    "simpletuner": simpletuner,
    "ai-toolkit": ai_toolkit,
    "diffusion-pipe": diffusion_pipe,
    "musubi-tuner": musubi_tuner,
    "diffsynth-studio": diffsynth_studio,
    "onetrainer": onetrainer,
    "diffusers": diffusers,
}


def steps_of(plan: Plan) -> list[int]:
    return sorted({*range(plan.save_every, plan.steps + 1, plan.save_every), plan.steps})


def write(path: str, tensors: Tensors, metadata: dict[str, str] | None = None) -> None:
    """Write a file, or stop where the test wants a failure: after so many files."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, target, metadata or {"format": "pt"}
    )
    left = int(os.environ.get("FAIL_AFTER", "1000000"))
    if left <= len(list(Path().rglob("output/**/*.safetensors"))):
        sys.exit(3)


def events(folder: Path, tags: dict[str, int]) -> None:
    """Event files for TensorBoard: each tag from step 1, with 1/step as its value."""
    writer = EventFileWriter(str(folder))
    for tag, steps in tags.items():
        for step in range(1, steps + 1):
            summary = Summary(value=[Summary.Value(tag=tag, simple_value=1 / step)])
            writer.add_event(Event(step=step, wall_time=0.0, summary=summary))
    writer.close()


def main() -> None:
    trainer, source = sys.argv[1:]
    tensors = load_file(source)
    names = {key.removeprefix("transformer.").rpartition(".lora_")[0] for key in tensors}
    total = int(os.environ.get("STEPS", "4"))

    def grown(step: int) -> Factors:
        part = np.float32(min(1.0, step / total))
        stem = "transformer.{}.lora_{}.weight"
        return {name: (tensors[stem.format(name, "A")], part * tensors[stem.format(name, "B")]) for name in names}

    TRAINERS[trainer](grown)
    Path("trained.txt").write_text(os.environ["PATH"])


if __name__ == "__main__":
    main()
