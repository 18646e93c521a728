"""Small projects on the drawn world that ran once, from photos to report; tests copy one and edit the copy."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from tests.workflow.project import Project

from likeness.miniature.world import render, sample_identities, sample_scenes

CONFIG = """\
shards: 2
gpus_per_job: 0
defaults:
  base_model: miniature
  photo: {min_side_px: 96}
  faces: {model: miniature, detection_size_px: 96, min_identity: 0.3, crop: {min_pixels: 32, size_px: 64}}
  masks: {backend: grabcut, model: null, kinds: [head, person], working_side_px: 128}
  captions: {backend: facts}
  limits: {min_face_px: 24, min_sharpness: 5}
  training:
    rank: 4
    alpha: 8
    steps: 4
    save_every: 2
    batch_size: 2
    learning_rate: 5.0e-4
    schedule: {name: constant}
    init: gaussian
    precision: float32
    buckets: {resolution_px: 16, bucket_step_px: 2, max_aspect: 1.0, reference_resolution_px: 16}
  evaluation:
    recogniser: miniature
    detection_size_px: 96
    seeds: [1, 3]
    sampling_steps: 2
    guidance_scale: 1.0
    width_px: 16
    height_px: 16
    enlarge_to_px: 128
    finalists: 1
    strengths: [1.0]
    precision: float32
  prompts:
    red: {text: "{trigger} {class}, close portrait, facing the camera, red background"}
    blue: {text: "{trigger} {class}, close portrait, facing the camera, blue background"}
"""

ONE_PHASE = """\
recipe: character
trigger: r0bin
photos: data/robin
held_out: 1
phases:
  main: {where: "brightness > 0", order_by: sharpness desc, top: 4}
"""

THREE_PHASES = """\
recipe: character
trigger: r0bin
photos: data/robin
held_out: 1
training: {steps: 2}
phases:
  wide: {where: "brightness > 0", order_by: sharpness desc, top: 4}
  middle: {where: "brightness > 1", order_by: sharpness desc, top: 3}
  fine: {where: "brightness > 2", order_by: sharpness desc, top: 2}
"""

ALL_BUT_ONE = """\
recipe: character
trigger: wr3n
photos: data/wren
held_out: 1
training: {steps: 2}
phases:
  main: {order_by: sharpness desc, top: 9, never: [photo-00]}
"""

EVERYTHING_ELSE = """\
recipe: character
trigger: r0bin
class_word: person
photos: data/robin
held_out: 1
phases:
  main: {where: "brightness > 0", order_by: sharpness desc, top: 4}
training:
  losses: {prior_preservation: {ratio: 0.5}}
regularisation: {photos: [data/others], drawn: 2, size_px: 16, sampling_steps: 2}
export: [simpletuner]
surgery:
  small: {method: resize, of: main, rank: 2}
ablation:
  blocks: {of: best, weights: [0], modes: [knock-out]}
crosstalk:
  early: {of: best, beside: {variant: main, step: 2}, method: k-lora}
probe:
  roles: {prompt: a person, content: a red wall, style: a blue person, seeds: [1]}
"""

WITH_LOSSES = """\
recipe: character
trigger: r0bin
photos: data/robin
held_out: 1
export: {simpletuner: {}}
phases:
  broad: {where: "brightness > 0", order_by: sharpness desc, top: 5}
  fine: {where: "brightness > 1 AND train_loss_percentile < 80", order_by: sharpness desc, losses_of: main}
"""


def draw_photos(folder: Path, count: int, seed: int) -> list[Path]:
    """Draw photos of one person; each has its own light, pose and background."""
    rng = np.random.default_rng(seed)
    identity = sample_identities(1, rng)
    scenes = sample_scenes(count, rng, framing="close")
    images_NHWC = render(np.repeat(identity, count, axis=0), scenes, 160, 160).images_NHWC
    folder.mkdir(parents=True)
    paths = []
    for index, image_HWC in enumerate(images_NHWC):
        path = folder / f"photo-{index:02d}.png"
        Image.fromarray((image_HWC * 255).round().astype(np.uint8)).save(path, compress_level=1)
        paths.append(path)
    return paths


def build_one_subject(project: Project) -> None:
    """One subject, one phase."""
    project.configure(CONFIG)
    project.configure(ONE_PHASE, "robin")
    draw_photos(project.folder / "data" / "robin", count=8, seed=5)
    project.succeed()


def build_two_subjects(project: Project) -> None:
    """Two subjects, one of them with three phases that start from each other's weights."""
    project.configure(CONFIG)
    project.configure(THREE_PHASES, "robin")
    project.configure(ALL_BUT_ONE, "wren")
    draw_photos(project.folder / "data" / "robin", count=8, seed=5)
    draw_photos(project.folder / "data" / "wren", count=8, seed=6)
    project.succeed()


def build_everything_else(project: Project) -> None:
    """One subject with what the others leave out: pictures of the class, an export, surgery, and its measurements."""
    project.configure(CONFIG)
    project.configure(EVERYTHING_ELSE, "robin")
    draw_photos(project.folder / "data" / "robin", count=8, seed=5)
    draw_photos(project.folder / "data" / "others", count=2, seed=7)
    project.succeed()


def build_with_losses(project: Project) -> None:
    """One subject whose second phase drops what the first learned worst."""
    project.configure(CONFIG)
    project.configure(WITH_LOSSES, "robin")
    draw_photos(project.folder / "data" / "robin", count=8, seed=5)
    project.succeed()


def built_once(build: Callable[[Project], None], miniature: Path, factory: pytest.TempPathFactory) -> Path:
    """A finished project, built by the first of the test processes that asks for it."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / build.__name__
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            unfinished = folder.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            build(Project(unfinished, miniature))
            unfinished.rename(folder)
    return folder


@pytest.fixture(scope="session")
def finished(miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of one subject that ran once from photos to report."""
    return built_once(build_one_subject, miniature, tmp_path_factory)


@pytest.fixture(scope="session")
def finished_pair(miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of two subjects, one with three chained phases, that ran once."""
    return built_once(build_two_subjects, miniature, tmp_path_factory)


@pytest.fixture(scope="session")
def finished_else(miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of one subject that ran once with the stages that `finished` leaves out."""
    return built_once(build_everything_else, miniature, tmp_path_factory)


@pytest.fixture(scope="session")
def finished_with_losses(miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of one subject with two phases that ran once, the second steered by losses of the first."""
    return built_once(build_with_losses, miniature, tmp_path_factory)


def moved(finished: Path, folder: Path) -> Project:
    """A copy of a finished project in another folder, with all modification times kept."""
    shutil.copytree(finished, folder, symlinks=True)
    return Project(folder)


@pytest.fixture
def project(finished: Path, tmp_path: Path) -> Project:
    return moved(finished, tmp_path / "project")


@pytest.fixture
def pair(finished_pair: Path, tmp_path: Path) -> Project:
    return moved(finished_pair, tmp_path / "project")
