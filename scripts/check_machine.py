"""Check what a run will need: interpreter, GPU, memory, disk, configuration, weights and access to gated models.

Prints one line a check with ok, note or MISSING, and exits with 1 when something is missing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from likeness.config.load import load_project
from likeness.config.subject import Subject
from likeness.errors import UserError
from likeness.models import WantedModel, found_at, how_to_get, is_hub_id, refusal_of, wanted_models
from likeness.program import run
from likeness.training.needs import memory_needed, memory_told, time_told

Check = tuple[str, str, str]
GIB = 1024**3
HEADROOM_GIB = 1.3
"""What the count of a step leaves out: workspaces of kernels and gaps of the allocator; a guess."""


def check_python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return ("ok" if sys.version_info >= (3, 11) else "MISSING", "python", f"{version} at {sys.executable}")


def check_gpu() -> tuple[Check, float]:
    """The GPU line, and its memory in GiB (0 without one)."""
    import torch

    driver = driver_version()
    if not torch.cuda.is_available():
        if driver:
            made_for = f"made for CUDA {torch.version.cuda}" if torch.version.cuda else "made without CUDA"
            text = (
                f"driver {driver} is here, but torch {torch.__version__}, {made_for}, cannot use it: renew one of them"
            )
            return ("note", "gpu", text), 0.0
        return ("note", "gpu", "none that torch can use; the demo and curation run without one"), 0.0
    facts = torch.cuda.get_device_properties(0)
    memory = facts.total_memory / GIB
    return (
        "ok",
        "gpu",
        f"{torch.cuda.device_count()} x {facts.name}, {memory:.0f} GiB, CUDA {torch.version.cuda}, driver {driver or 'unknown'}",
    ), memory


def driver_version() -> str | None:
    """The version of NVIDIA's driver by its own program; None where there is none, or it does not answer."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.split()), None)


def check_space(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free / GIB
    return (
        "ok" if free > 20 else "note",
        "disk",
        f"{free:.0f} GiB free here; a subject takes 1 to 20 GiB, models 10 to 40",
    )


def check_model(one: WantedModel, offline: bool) -> Check:
    """Where a model lies, or how to get it and, unless the configuration is offline, whether the hub would give it."""
    place = found_at(one.model)
    if place:
        return "ok", one.label, str(place)
    refusal = refusal_of(one.model) if is_hub_id(one.model.source) and not offline else None
    return "MISSING", one.label, "; ".join(text for text in (how_to_get(one.model), refusal) if text)


def check_subject(name: str, subject: Subject, memory_gib: float, offline: bool) -> Iterator[Check]:
    """Weights, keys, memory and the time to expect for one subject."""
    for one in wanted_models(name, subject):
        yield check_model(one, offline)
    key_name = subject.captions.api_key_env
    if subject.captions.backend == "endpoint" and key_name:
        yield (
            "ok" if os.environ.get(key_name) else "MISSING",
            f"{name}: {key_name}",
            "the endpoint's key in the environment",
        )
    needed = memory_needed(subject)
    if needed is None:
        return
    recomputed_gib, _ = needed
    enough = not memory_gib or memory_gib >= recomputed_gib + HEADROOM_GIB
    text = f"estimated, not measured: {memory_told(subject)}; where it runs out, blocks are recomputed by themselves"
    yield "note", f"{name}: memory", text if enough else f"{text}; this GPU is probably too small"
    if told := time_told(subject):
        yield "note", f"{name}: time", f"estimated, not measured: training {told}; evaluation comes on top"


def counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(), help="the project's folder")
    folder = parser.parse_args().folder
    gpu, memory_gib = check_gpu()
    checks = [check_python(), gpu, check_space(folder)]
    try:
        loaded = load_project(folder)
        checks.append(("ok", "configuration", counted(len(loaded.project.subjects), "subject")))
        checks += [("note", "configuration", str(warning)) for warning in loaded.warnings]
        for name, subject in loaded.project.subjects.items():
            checks += check_subject(name, subject, memory_gib, loaded.project.offline)
    except UserError as error:
        checks.append(("MISSING", "configuration", str(error)))
    for state, what, text in checks:
        print(f"{state:8} {what:28} {text}")
    sys.exit(any(state == "MISSING" for state, _, _ in checks))


if __name__ == "__main__":
    run(main)
