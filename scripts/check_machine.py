"""Check what a run will need: interpreter, GPU, memory, disk, configuration, weights and access to gated models.

Prints one line a check with ok, note or MISSING, and exits with 1 when something is missing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from likeness.config.base import ModelSource
from likeness.config.craft import model_size
from likeness.config.load import load_project
from likeness.config.subject import MINIATURE, Subject
from likeness.errors import UserError
from likeness.program import run

Check = tuple[str, str, str]
GIB = 1024**3
NEEDED_GIB = {"4b": 12, "9b": 22}
STEP_SECONDS = {"4b": 0.26, "9b": 0.55}


def check_python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return ("ok" if sys.version_info >= (3, 11) else "MISSING", "python", f"{version} at {sys.executable}")


def check_gpu() -> tuple[Check, float]:
    """The GPU line, and its memory in GiB (0 without one)."""
    import torch

    if not torch.cuda.is_available():
        return ("note", "gpu", "none that torch can use; the demo and curation run without one"), 0.0
    facts = torch.cuda.get_device_properties(0)
    memory = facts.total_memory / GIB
    return (
        "ok",
        "gpu",
        f"{torch.cuda.device_count()} x {facts.name}, {memory:.0f} GiB, CUDA {torch.version.cuda}",
    ), memory


def check_space(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free / GIB
    return (
        "ok" if free > 20 else "note",
        "disk",
        f"{free:.0f} GiB free here; a subject takes 1 to 20 GiB, models 10 to 40",
    )


def sources_of(subject: Subject) -> Iterator[tuple[str, ModelSource]]:
    """The models that a subject needs, by key."""
    yield "base_model", subject.base_model
    if subject.faces.backend in {"insightface", "yolo"}:
        yield "faces.model", subject.faces.model
    if subject.masks.model and subject.masks.backend not in {"grabcut", "folder"}:
        yield "masks.model", subject.masks.model
    if subject.quality.body_pose:
        yield "quality.body_pose", subject.quality.body_pose
    if subject.captions.backend == "transformers":
        yield "captions.model", subject.captions.model
    if subject.evaluation.recogniser_backend == "insightface":
        yield "evaluation.recogniser", subject.evaluation.recogniser


def found_at(model: ModelSource) -> str | None:
    """Where a model lies on this machine, or None."""
    if model.source == MINIATURE or Path(model.source).exists():
        return model.source
    pack = Path.home() / ".insightface" / "models" / model.source
    if pack.is_dir():
        return str(pack)
    from huggingface_hub import try_to_load_from_cache

    if "/" in model.source:
        for name in ("model_index.json", "config.json"):
            cached = try_to_load_from_cache(model.source, name, revision=model.revision)
            if isinstance(cached, str):
                return str(Path(cached).parent)
    return None


def how_to_get(model: ModelSource) -> str:
    """What to do about a model that is not here."""
    if "/" not in model.source:
        return f"{model.source} is not on this machine; put the pack's files into ~/.insightface/models/{model.source} or name a folder"
    return f"{model.source} is not on this machine; `hf download {model.source}` fetches it (gated models: `hf auth login` first)"


def check_subject(name: str, subject: Subject, memory_gib: float) -> Iterator[Check]:
    """Weights, keys, memory and the time to expect for one subject."""
    for key, model in sources_of(subject):
        place = found_at(model)
        yield (
            ("ok", f"{name}: {key}", place)
            if place
            else (
                "MISSING",
                f"{name}: {key}",
                f"{model.source} is not on this machine; `hf download {model.source}` fetches it (gated models: `hf auth login` first)",
            )
        )
    key_name = subject.captions.api_key_env
    if subject.captions.backend == "endpoint" and key_name:
        yield (
            "ok" if os.environ.get(key_name) else "MISSING",
            f"{name}: {key_name}",
            "the endpoint's key in the environment",
        )
    size = model_size(subject)
    if size and memory_gib:
        enough = memory_gib >= NEEDED_GIB[size]
        yield (
            "ok" if enough else "note",
            f"{name}: memory",
            f"klein {size} needs about {NEEDED_GIB[size]} GiB with gradient checkpointing",
        )
    if size:
        steps = sum(
            subject.training_of(variant, phase).steps
            for variant in subject.trained_variants
            for phase in subject.phases_of(variant)
        )
        minutes = steps * STEP_SECONDS[size] / 60
        yield (
            "note",
            f"{name}: time",
            f"{steps} steps; about {minutes:.0f} min on an H200 at 1024 px, five times that on an RTX 4090",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(), help="the project's folder")
    folder = parser.parse_args().folder
    gpu, memory_gib = check_gpu()
    checks = [check_python(), gpu, check_space(folder)]
    try:
        loaded = load_project(folder)
        checks.append(("ok", "configuration", f"{len(loaded.project.subjects)} subjects"))
        checks += [("note", "configuration", str(warning)) for warning in loaded.warnings]
        for name, subject in loaded.project.subjects.items():
            checks += check_subject(name, subject, memory_gib)
    except UserError as error:
        checks.append(("MISSING", "configuration", str(error)))
    for state, what, text in checks:
        print(f"{state:8} {what:28} {text}")
    sys.exit(any(state == "MISSING" for state, _, _ in checks))


if __name__ == "__main__":
    run(main)
