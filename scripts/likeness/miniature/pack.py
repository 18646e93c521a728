"""Build the miniature's model folders: a face pack that the real insightface loads, and its companions.

`pack/` (detector and recogniser for curation) and `evaluation_pack/` (the same detector, another recogniser) are plain
folders for `insightface.app.FaceAnalysis(name=folder)`, which routes files by the shapes of their inputs and outputs.
Everything is trained here, on one thread, in fixed numbers of steps: the same seed gives the same bytes. A folder
appears complete or not at all, with a manifest of its files' sha256.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from likeness.errors import UserError, nearest

MANIFEST_NAME = "manifest.json"
PACK_NAME, EVALUATION_PACK_NAME = "pack", "evaluation_pack"
DETECTOR_FILE, RECOGNISER_FILE = "detector.onnx", "recogniser.onnx"


@dataclass(frozen=True)
class Effort:
    """How long to train; None means the number that each network's module names. Zero steps leave random weights."""

    detector_steps: int | None = None
    detector_pictures: int | None = None
    recogniser_steps: int | None = None
    recogniser_people: int | None = None


FULL = Effort()
UNTRAINED = Effort(0, 0, 0, 0)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Pin torch and OpenCV to one thread: sums taken in another order would change the last bits."""
    import cv2
    import torch

    torch_threads, cv2_threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(torch_threads)
        cv2.setNumThreads(cv2_threads)


def _write_packs(folder: Path, seed: int, effort: Effort = FULL) -> None:
    from likeness.miniature import detector, recogniser

    with _one_thread():
        steps = detector.STEPS if effort.detector_steps is None else effort.detector_steps
        pictures = detector.PICTURES_EACH if effort.detector_pictures is None else effort.detector_pictures
        finder = detector.train_detector(seed, steps, pictures)
        for name, design in ((PACK_NAME, recogniser.CURATION), (EVALUATION_PACK_NAME, recogniser.EVALUATION)):
            model = recogniser.train_recogniser(design, seed, effort.recogniser_steps, effort.recogniser_people)
            detector.save_detector(finder, folder / name / DETECTOR_FILE)
            recogniser.save_recogniser(model, folder / name / RECOGNISER_FILE)


def _write_sam2(folder: Path, seed: int) -> None:
    from likeness.miniature.sam2 import build_sam2

    build_sam2(folder / "sam2", seed)


def _write_vlm(folder: Path, seed: int) -> None:
    from likeness.miniature.vlm import build_vlm

    build_vlm(folder / "vlm", seed)


def _write_yolo(folder: Path, seed: int) -> None:
    from likeness.miniature.yolo import build_yolo

    build_yolo(folder / "yolo", seed)


PARTS: dict[str, Callable[[Path, int], None]] = {
    "pack": _write_packs,
    "sam2": _write_sam2,
    "vlm": _write_vlm,
    "yolo": _write_yolo,
}


def manifest_of(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file under a folder by its relative path, sorted; the manifest itself is left out."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != MANIFEST_NAME)
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def _build(folder: Path, seed: int, parts: list[str], write: dict[str, Callable[[Path, int], None]]) -> dict[str, str]:
    """Write parts into a scratch folder beside the wanted one, add the manifest, and put it in place by a rename."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        scratch.chmod(0o755)
        for part in parts:
            write[part](scratch, seed)
        manifest = manifest_of(scratch)
        (scratch / MANIFEST_NAME).write_text(
            json.dumps({"seed": seed, "files": manifest}, indent=2, sort_keys=True) + "\n"
        )
        if folder.exists():
            _set_aside(folder)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return manifest


def _set_aside(folder: Path) -> None:
    """Remove a folder that an earlier build left (or an empty one), never anybody else's files."""
    if any(folder.iterdir()) and not (folder / MANIFEST_NAME).is_file():
        raise UserError(
            f"{folder} holds files but no {MANIFEST_NAME}, so it was not made by this program and is left alone. "
            "Name another folder, or remove this one."
        )
    shutil.rmtree(folder)


def build_parts(folder: Path, seed: int = 0, parts: tuple[str, ...] = ("pack", "sam2", "vlm")) -> dict[str, str]:
    """Build the named parts into one folder and return its manifest: sha256 by relative path.

    Raises
    ------
    UserError
        For an unknown part, and when the folder holds files of another origin.
    """
    for part in parts:
        if part not in PARTS:
            raise UserError(f"--parts names {part!r}, which the miniature does not have: {nearest(part, PARTS)}")
    return _build(folder, seed, sorted(set(parts)), PARTS)


def build_pack(folder: Path, seed: int = 0, effort: Effort = FULL) -> dict[str, str]:
    """Train and write `pack/` and `evaluation_pack/` under a folder; returns the manifest: sha256 by relative path.

    Raises
    ------
    UserError
        When the folder holds files of another origin.
    """
    return _build(folder, seed, ["pack"], {"pack": lambda scratch, number: _write_packs(scratch, number, effort)})
