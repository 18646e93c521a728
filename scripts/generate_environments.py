"""Write envs/<stage>.yaml, one conda file a stage, from the lock: what the stage imports and all that this needs.

The closure is read from the installed packages, the pins from envs/lock.txt; a test fails when they drift. A cluster
profile switches these files on with `software-deployment-method: [conda]`.
"""

from __future__ import annotations

import argparse
import re
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.markers import Marker
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
    "scikit-image",
    "filelock",
    "jinja2",
    "tqdm",
)
FACES = ("onnx", "onnxruntime", "insightface", "huggingface-hub")
TORCH = ("torch", "torchvision", "transformers", "huggingface-hub")
STAGES = {
    "curate": CORE,
    "faces": (*CORE, *FACES),
    "masks": (*CORE, *FACES, *TORCH),
    "captions": (*CORE, *TORCH, "httpx", "tenacity", "accelerate"),
    "train": (
        *CORE,
        *FACES,
        *TORCH,
        "tomli-w",
        "diffusers",
        "peft",
        "accelerate",
        "safetensors",
        "bitsandbytes",
        "prodigyopt",
        "schedulefree",
        "torch-optimi",
        "onnx2torch",
        "lpips",
        "tensorboard",
    ),
}


PYTHON = "3.11"
MACHINE = {
    "python_version": PYTHON,
    "python_full_version": f"{PYTHON}.9",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
}
"""Where the conda files are used, for the markers of the lock; they say so in their first dependency."""


def pins(lock: str) -> dict[str, str]:
    """Version of each package in the lock, by canonical name; what the conda files' machine does not get is left out."""
    lines = re.findall(r"^([A-Za-z0-9_.\-]+)==([^\s;\\]+)(?:\s*;([^\n\\]*))?", lock, re.MULTILINE)
    return {canonicalize_name(name): version for name, version, marker in lines if applies(marker.strip())}


def applies(marker: str, extra: str = "") -> bool:
    """Whether a requirement's marker holds where the conda files are used."""
    return not marker or Marker(marker).evaluate({**MACHINE, "extra": extra})


def closure(names: tuple[str, ...], known: dict[str, str]) -> list[str]:
    """All packages that `names` need on this kind of machine, themselves and what their extras ask for included."""
    seen: set[tuple[str, str]] = set()
    waiting = [(canonicalize_name(name), "") for name in names]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen or name not in known:
            continue
        seen.add((name, extra))
        try:
            needed = [Requirement(text) for text in requires(name) or []]
        except PackageNotFoundError:
            continue
        for item in needed:
            if applies(str(item.marker or ""), extra):
                waiting += [(canonicalize_name(item.name), one) for one in ("", *item.extras)]
    return sorted({name for name, _ in seen})


def render(stage: str, known: dict[str, str]) -> str:
    """One conda file."""
    lines = [
        "# Generated from envs/lock.txt by scripts/generate_environments.py.",
        "channels:",
        "  - conda-forge",
        "  - nodefaults",
    ]
    lines += ["dependencies:", f"  - python={PYTHON}", "  - pip", "  - pip:"]
    return "\n".join([*lines, *(f"      - {name}=={known[name]}" for name in closure(STAGES[stage], known))]) + "\n"


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    known = pins((HOUSE / "envs" / "lock.txt").read_text(encoding="utf-8"))
    for stage in STAGES:
        (HOUSE / "envs" / f"{stage}.yaml").write_text(render(stage, known), encoding="utf-8")


if __name__ == "__main__":
    run(main)
