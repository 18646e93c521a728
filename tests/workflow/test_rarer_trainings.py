"""Whole runs of trainings that read more than photos: pictures of the class, an ablation of another's LoRA, and pairs as
diptychs or as the two ends of a slider."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.workflow.conftest import CONFIG, draw_photos
from tests.workflow.project import Project, Run
from tests.workflow.table import MERGES, PAGES

from likeness.lora.blocks import block_of
from likeness.lora.files import read_lora
from likeness.miniature.photos import SMILE_INSTRUCTION, draw_pair, save_photo, smile_scenes
from likeness.miniature.scenes import sample_identities
from likeness.store import Store
from likeness.tables import ENCODED, LOG, SCORES, read_rows
from likeness.tables_surgery import ABLATION

pytestmark = pytest.mark.slow

ROBIN = """\
recipe: character
trigger: r0bin
photos: data/robin
held_out: 1
regularisation: {photos: data/people, drawn: 2, size_px: 16, sampling_steps: 2, guidance_scale: 1.0}
training: {steps: 3, save_every: 3, learning_rate: 1.0e-2, losses: {prior_preservation: {}}}
phases: {main: {order_by: sharpness desc, top: 3}}
variants:
  main: {}
  few: {training: {targets_from: {ablation: blocks, most: 2}}}
ablation:
  blocks: {of: {variant: main, phase: main, step: 3}, weights: [0], modes: [knock-out]}
prompts:
  red: {text: "{trigger} {class}, close portrait, red background", split: select}
  blue: {text: "{trigger} {class}, close portrait, blue background", split: select}
  green: {text: "{trigger} {class}, close portrait, green background", split: select}
  black: {text: "{trigger} {class}, close portrait, black background", split: select}
  brown: {text: "{trigger} {class}, close portrait, brown background", split: select}
  white: {text: "{trigger} {class}, close portrait, white background", split: report}
"""
SMILE = """\
recipe: edit
trigger: sm1le
pairs: data/smile
held_out: 1
limits: {min_background_ssim: null}
training: {steps: 2, buckets: {diptych: true}, losses: {velocity: {region: right_half}}}
choice: {min_diversity: null}
"""
GRIN = """\
recipe: edit
trigger: gr1n
pairs: data/smile
held_out: 1
limits: {min_background_ssim: null}
training: {steps: 2, losses: {velocity: {weight: 0}, image_slider: {prompt: a person}}}
choice: {min_diversity: null}
"""
SHARED = ("detect_faces", "make_masks", "measure_quality", "write_captions")
CHOSEN = ("score_base", "choose_checkpoint", "score_finalists", "publish_lora", "write_config", "decide_phases")


def draw_smiles(folder: Path, count: int, seed: int) -> None:
    """Draw pairs whose ends smile before white."""
    rng = np.random.default_rng(seed)
    identities, scenes = sample_identities(count, rng), smile_scenes(count, rng)
    for place in range(count):
        pair = draw_pair(identities[place : place + 1], scenes.take(place), "", rng, 160)
        for name, image_HWC in zip(("start", "end"), pair, strict=True):
            save_photo(image_HWC, folder / f"{place:02d}_{name}.png")
        (folder / f"{place:02d}.txt").write_text(SMILE_INSTRUCTION, encoding="utf-8")


@pytest.fixture(scope="module")
def runs(miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Run]:
    """A project of a person and of the same pairs in two ways, and its first run."""
    project = Project(tmp_path_factory.mktemp("rarer") / "project", miniature)
    project.configure(CONFIG.replace("shards: 2", "shards: 1"))
    project.configure(ROBIN, "robin")
    project.configure(SMILE, "smile")
    project.configure(GRIN, "grin")
    draw_photos(project.folder / "data" / "robin", count=5, seed=5)
    draw_photos(project.folder / "data" / "people", count=2, seed=6)
    draw_smiles(project.folder / "data" / "smile", count=4, seed=7)
    return project, project.succeed()


def jobs_of(run: Run, subject: str) -> set[str]:
    return {job for job in run.jobs if job.split("/")[1:2] == [subject]}


def usual(subject: str, kind: str) -> set[str]:
    """Jobs of every subject in one shard, up to its training and from its scores on."""
    once = {f"{rule}/{subject}" for rule in (*MERGES, *CHOSEN)}
    sharded = {f"{rule}/{subject}/0" for rule in (f"index_{kind}", *SHARED)}
    return once | sharded | {f"merge_photos/{subject}/{kind}", f"encode_samples/{subject}/main/main"}


def trained(subject: str, *variants: str) -> set[str]:
    return {f"{rule}/{subject}/{one}/main" for rule in ("train_lora", "score_checkpoints") for one in variants}


def test_nothing_is_left_to_do(runs: tuple[Project, Run]) -> None:
    project, first = runs
    assert first.jobs == PAGES.union(*(jobs_of(first, subject) for subject in ("robin", "smile", "grin")))
    assert project.succeed().jobs == set()


def test_pictures_of_the_class_are_indexed_drawn_and_learned(runs: tuple[Project, Run]) -> None:
    project, first = runs
    of_class = {"index_regularisation/robin", "draw_class_images/robin"}
    expected = usual("robin", "photos") | trained("robin", "main", "few") | of_class | {"ablate_lora/robin/blocks"}
    assert jobs_of(first, "robin") == expected
    results = project.folder / "results" / "robin"
    encoded = read_rows(results / "encoded" / "main" / "main.parquet", ENCODED)
    class_ids = {row["sample_id"] for row in encoded if row["regularisation"]}
    assert len(class_ids) == 4, "two photos and two that were drawn"
    for row in read_rows(results / "train" / "main" / "main" / "log.parquet", LOG):
        assert row["loss_prior_preservation"] > 0
        assert set(row["samples"]) & class_ids and set(row["samples"]) - class_ids


def test_an_ablation_of_one_variant_chooses_the_modules_of_another(runs: tuple[Project, Run]) -> None:
    results = runs[0].folder / "results" / "robin"
    rows = read_rows(results / "ablation" / "blocks.parquet", ABLATION)
    rows = [row for row in rows if row["metric"] == "image_change" and (row["p_holm"] or 1.0) <= 0.05]
    first = {row["block"] for row in sorted(rows, key=lambda row: row["rank"])[:2]}
    assert len(first) == 2
    blocks = {}
    for variant in ("main", "few"):
        modules = read_lora(results / "train" / variant / "main" / "step-000003.safetensors").modules
        blocks[variant] = {block_of(name) for name in modules}
    assert blocks["few"] == first < blocks["main"]


def test_a_diptych_is_learned_on_its_right_half_and_drawn_as_one_picture(runs: tuple[Project, Run]) -> None:
    project, first = runs
    assert jobs_of(first, "smile") == usual("smile", "pairs") | trained("smile", "main")
    results = project.folder / "results" / "smile"
    encoded = read_rows(results / "encoded" / "main" / "main.parquet", ENCODED)
    assert {(row["width_px"], row["height_px"], len(row["reference_latents_sha256s"])) for row in encoded} == {
        (32, 16, 0)
    }
    scores = read_rows(results / "evaluation" / "main" / "main" / "scores.parquet", SCORES)
    drawn = {row["image"] for row in scores if row["step"] == 2}
    store = Store(project.folder / "results" / ".store")
    assert drawn and {Image.open(store.blob_path(sha256)).size for sha256 in drawn} == {(16, 16)}
    assert any(row["metric"] == "target_error" and row["value"] is not None for row in scores)
    assert json.loads((results / "best.json").read_text("utf-8"))["variant"] == "main"


def test_a_slider_is_learned_from_sources_at_their_targets_size(runs: tuple[Project, Run]) -> None:
    project, first = runs
    assert jobs_of(first, "grin") == usual("grin", "pairs") | trained("grin", "main")
    results = project.folder / "results" / "grin"
    encoded = read_rows(results / "encoded" / "main" / "main.parquet", ENCODED)
    sources = {row["source_latents_sha256"] for row in encoded}
    assert len(sources) == 3 and None not in sources and not sources & {row["latents_sha256"] for row in encoded}
    for row in read_rows(results / "train" / "main" / "main" / "log.parquet", LOG):
        assert row["loss"] == pytest.approx(row["loss_image_slider"]) and row["loss_velocity"] > 0
