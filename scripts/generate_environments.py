"""Write envs/<stage>.yaml, one conda file a stage, from the lock: what the stage imports and all that this needs.

The closure is read from the installed packages, the pins from envs/lock.txt; a test fails when they drift. A cluster
profile switches these files on with `software-deployment-method: [conda]`.
"""

from __future__ import annotations

import argparse
import re
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from likeness.program import run

HOUSE = Path(__file__).resolve().parents[1]
CORE = (
    "pydantic",
    "pyyaml",
    "numpy",
    "scipy",
    "pandas",
    "pyarrow",
    "duckdb",
    "pillow",
    "pillow-heif",
    "opencv-python-headless",
)
CORE += ("scikit-image", "imagehash", "filelock", "jinja2", "tqdm")
TORCH = ("torch", "torchvision", "diffusers", "transformers", "peft", "accelerate", "safetensors")
STAGES = {
    "curate": (*CORE, "tomli-w"),
    "faces": (*CORE, "onnx", "onnxruntime", "insightface"),
    "masks": (*CORE, "torch", "torchvision", "transformers"),
    "captions": (*CORE, "httpx", "tenacity", "torch", "torchvision", "transformers", "accelerate"),
    "train": (
        *CORE,
        "tomli-w",
        *TORCH,
        "bitsandbytes",
        "prodigyopt",
        "lpips",
        "onnx",
        "onnxruntime",
        "insightface",
        "tensorboard",
    ),
}


def pins(lock: str) -> dict[str, str]:
    """Version of each package in the lock, by canonical name; packages that no platform gets are left out."""
    lines = re.findall(r"^([A-Za-z0-9_.\-]+)==([^\s;\\]+)([^\n]*)", lock, re.MULTILINE)
    return {canonicalize_name(name): version for name, version, marker in lines if "'never'" not in marker}


def closure(names: tuple[str, ...], known: dict[str, str]) -> list[str]:
    """All packages that `names` need on this kind of machine, themselves included."""
    seen: set[str] = set()
    waiting = [canonicalize_name(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in seen or name not in known:
            continue
        seen.add(name)
        try:
            needed = [Requirement(text) for text in requires(name) or []]
        except PackageNotFoundError:
            continue
        waiting += [
            canonicalize_name(item.name)
            for item in needed
            if item.marker is None or item.marker.evaluate({"extra": ""})
        ]
    return sorted(seen)


def render(stage: str, known: dict[str, str]) -> str:
    """One conda file."""
    lines = [
        "# Generated from envs/lock.txt by scripts/generate_environments.py.",
        "channels:",
        "  - conda-forge",
        "  - nodefaults",
    ]
    lines += ["dependencies:", "  - python=3.11", "  - pip", "  - pip:"]
    return "\n".join([*lines, *(f"      - {name}=={known[name]}" for name in closure(STAGES[stage], known))]) + "\n"


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    known = pins((HOUSE / "envs" / "lock.txt").read_text(encoding="utf-8"))
    for stage in STAGES:
        (HOUSE / "envs" / f"{stage}.yaml").write_text(render(stage, known), encoding="utf-8")


if __name__ == "__main__":
    run(main)
