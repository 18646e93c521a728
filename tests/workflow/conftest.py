"""A small project on the drawn world: one subject, few photos, few steps, every stage."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
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
    steps: 10
    save_every: 5
    batch_size: 4
    learning_rate: 5.0e-4
    init: gaussian
    precision: float32
    buckets: {resolution_px: 16, bucket_step_px: 2, max_aspect: 1.0, reference_resolution_px: 16}
  evaluation:
    recogniser: miniature
    detection_size_px: 96
    seeds: [1, 2, 3, 4]
    sampling_steps: 8
    guidance_scale: 1.0
    width_px: 16
    height_px: 16
    enlarge_to_px: 128
    finalists: 1
    strengths: [1.0]
    precision: float32
"""

SUBJECT = """\
recipe: character
trigger: r0bin
photos: data/robin
held_out: 2
phases:
  main: {{where: "brightness > 0", order_by: sharpness desc, top: {top}}}
prompts:
  red: {{text: "{{trigger}} {{class}}, close portrait, facing the camera, even light, red background", split: select}}
  blue: {{text: "{{trigger}} {{class}}, close portrait, facing the camera, even light, blue background", split: report}}
"""


def draw_photos(folder: Path, count: int = 10, seed: int = 5) -> list[Path]:
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


@pytest.fixture(scope="session")
def finished(miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that ran once from photos to report; tests copy it and edit the copy."""
    project = Project(tmp_path_factory.mktemp("finished") / "project", miniature)
    project.configure(CONFIG)
    project.configure(SUBJECT.format(top=6), "robin")
    draw_photos(project.folder / "data" / "robin")
    project.succeed()
    return project.folder


@pytest.fixture
def project(finished: Path, tmp_path: Path) -> Project:
    """A copy of the finished project, moved to another folder with all modification times kept."""
    folder = tmp_path / "project"
    shutil.copytree(finished, folder, symlinks=True)
    return Project(folder)
