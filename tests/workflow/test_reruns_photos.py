"""What an edit of a photo or a caption starts: exact jobs, items computed, models loaded."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageFilter
from tests.workflow.conftest import draw_photos
from tests.workflow.project import Project, Run, copy_house
from tests.workflow.table import (
    CAPTIONS_CSV,
    PAGES,
    Edit,
    Scene,
    Step,
    append,
    base,
    choice,
    curation,
    darken,
    decision,
    edit_caption,
    encoding,
    follow,
    nothing,
    read_captions,
    revert,
    scores,
    settings,
    training,
    write_sidecar,
)

from likeness.store import sha256_of_file

pytestmark = pytest.mark.slow

ONE_PHOTO = {"photos": 1, "faces": 1, "crops": 1, "masks": 1, "crop_masks": 2, "quality": 1}
FACES_AND_MASKS = {"detect_faces": 1, "make_masks": 1}
EVALUATION = {*base("robin"), *scores("robin", "main"), *choice("robin")}
TRAINING = {*encoding("robin", "main"), *training("robin", "main"), *EVALUATION}
NEW_CHECKPOINTS = {"generated-images": 3, "score-faces": 3, "score-pixels": 3, "score-diversity": 3}
"""Two checkpoints on the select half, and the finalist on the report half: one prompt and seed each."""
DRAWING = {"score_checkpoints": 3, "score_finalists": 3}
"""Transformer, VAE and recogniser."""
CAPTIONS = {"write_captions/robin/{kept}", "merge_captions/robin", *decision("robin"), *PAGES}
REVERTED_WITHIN_S = 300
"""A minute on an idle machine; busy ones need more."""


def lora_of(project: Project) -> str:
    return sha256_of_file(project.folder / "results" / "robin" / "lora" / "robin.safetensors")


def same_lora_soon(scene: Scene, run: Run) -> None:
    """Yesterday's LoRA is back, soon."""
    assert lora_of(scene.project) == sha256_of_file(scene.origin / "results" / "robin" / "lora" / "robin.safetensors")
    assert run.elapsed_s < REVERTED_WITHIN_S


def other_lora(scene: Scene, run: Run) -> None:
    """Another LoRA is published, and yesterday's is in the archive."""
    before = sha256_of_file(scene.origin / "results" / "robin" / "lora" / "robin.safetensors")
    assert lora_of(scene.project) != before
    archived = scene.project.folder / "results" / "robin" / "lora" / "archive" / before[:12] / "robin.safetensors"
    assert sha256_of_file(archived) == before


def edit_is_kept_by(name: str) -> Callable[[Scene, Run], None]:
    """The edited caption stands in this photo's line of captions.csv."""

    def check(scene: Scene, run: Run) -> None:
        line = read_captions(scene.project.folder / CAPTIONS_CSV)[name]
        assert line["caption"] == line["written"] + ", waving with one hand"

    return check


def touch_everything(scene: Scene) -> None:
    """Renew all modification times of what a person keeps: photos, configuration, code."""
    for folder in (scene.folder(), scene.project.folder / "config", scene.project.house):
        for path in folder.rglob("*"):
            path.touch()


def add_blurred(scene: Scene) -> None:
    """Add a photo of somebody else, too blurred to be among the sharpest."""
    (path,) = draw_photos(scene.project.folder / "drawn", count=1, seed=9)
    Image.open(path).filter(ImageFilter.GaussianBlur(1)).save(scene.photo("added"))


def take_away(name: str) -> Edit:
    """Move a photo out of the subject's folder."""

    def edit(scene: Scene) -> None:
        path = scene.photo(name)
        elsewhere = scene.project.folder / "elsewhere"
        elsewhere.mkdir()
        path.rename(elsewhere / path.name)

    return edit


def bring_back(name: str) -> Edit:
    """Move it back."""
    return lambda scene: (scene.project.folder / "elsewhere" / scene.photo(name).name).rename(scene.photo(name))


IDENTITY = "training: {losses: {identity: {model: miniature, min_similarity: -1, sigma_max: 1.0}}}\n"

TABLE = {
    "nothing": [Step(nothing), Step(touch_everything)],
    "an unselected photo changed and reverted": [
        Step(darken("top"), curation("robin", "top"), ONE_PHOTO, FACES_AND_MASKS),
        Step(revert("top"), curation("robin", "top")),
        Step(nothing),
    ],
    "a held-out photo changed": [
        Step(
            darken("held_out"),
            {*curation("robin", "held_out"), *EVALUATION},
            {**ONE_PHOTO, "score-faces": 1},
            {**FACES_AND_MASKS, "score_base": 1},
        ),
    ],
    "a selected photo changed and reverted": [
        Step(
            darken("kept"),
            {*curation("robin", "kept"), *TRAINING},
            {**ONE_PHOTO, "latents": 1, "loss-weights": 1, "training-steps": 4, **NEW_CHECKPOINTS, "score-faces": 4},
            {**FACES_AND_MASKS, "encode_samples": 1, "train_lora": 1, "score_base": 1, **DRAWING},
            then=other_lora,
        ),
        Step(revert("kept"), {*curation("robin", "kept"), *TRAINING}, then=same_lora_soon),
    ],
    "a photo added, removed and added again": [
        Step(add_blurred, curation("robin", "added"), ONE_PHOTO, FACES_AND_MASKS),
        Step(take_away("added"), curation("robin", "added")),
        Step(bring_back("added"), curation("robin", "added")),
    ],
    "a selected photo renamed": [
        Step(lambda scene: scene.photo("kept").rename(scene.photo("renamed")), curation("robin", "kept", "renamed")),
    ],
    "a loss reads faces; an unselected photo changed, a selected one renamed, a held-out one changed": [
        Step(
            append(IDENTITY, "robin"),
            {*encoding("robin", "main"), *training("robin", "main"), *scores("robin", "main"), *choice("robin")}
            | settings("robin"),
            {"training-steps": 4, **NEW_CHECKPOINTS},
            {"train_lora": 1, **DRAWING},
        ),
        Step(darken("top"), curation("robin", "top"), ONE_PHOTO, FACES_AND_MASKS),
        Step(lambda scene: scene.photo("kept").rename(scene.photo("renamed")), curation("robin", "kept", "renamed")),
        Step(
            darken("held_out"),
            {*curation("robin", "held_out"), *EVALUATION},
            {**ONE_PHOTO, "score-faces": 1},
            {**FACES_AND_MASKS, "score_base": 1},
        ),
    ],
    "a selected photo removed and added again": [
        Step(
            take_away("kept"),
            {*curation("robin", "kept"), *TRAINING},
            # The photo that moves up is encoded, and its face measured as one that could be copied.
            {
                **{"embeddings": 1, "latents": 1, "loss-weights": 1, "training-steps": 4},
                **NEW_CHECKPOINTS,
                "score-faces": 4,
            },
            {"encode_samples": 2, "train_lora": 1, "score_base": 1, **DRAWING},
            then=other_lora,
        ),
        Step(bring_back("kept"), {*curation("robin", "kept"), *TRAINING}, then=same_lora_soon),
    ],
    "a selected photo's caption edited in captions.csv, then in a sidecar": [
        Step(
            edit_caption("kept", ", waving with one hand"),
            {*CAPTIONS, *TRAINING},
            {"embeddings": 1, "training-steps": 4, **NEW_CHECKPOINTS},
            {"encode_samples": 1, "train_lora": 1, **DRAWING},
        ),
        Step(nothing),
        Step(write_sidecar("kept", as_before=False), CAPTIONS),
        Step(write_sidecar("kept", as_before=True), {*CAPTIONS, *TRAINING}, then=same_lora_soon),
        Step(nothing),
    ],
    "a selected photo whose caption was edited, renamed, copied and given a film beside it": [
        Step(
            edit_caption("kept", ", waving with one hand"),
            {*CAPTIONS, *TRAINING},
            {"embeddings": 1, "training-steps": 4, **NEW_CHECKPOINTS},
            {"encode_samples": 1, "train_lora": 1, **DRAWING},
        ),
        Step(lambda scene: scene.photo("kept").rename(scene.photo("renamed")), curation("robin", "kept", "renamed")),
        Step(nothing),
        Step(lambda scene: shutil.copy(scene.photo("renamed"), scene.photo("aaa")), curation("robin", "aaa")),
        Step(
            lambda scene: scene.photo("renamed").with_suffix(".MOV").write_bytes(b"a film"),
            curation("robin", "renamed", "renamed-png", "renamed-mov"),
        ),
        Step(nothing, then=edit_is_kept_by("renamed-png")),
    ],
}


LONG = {
    "a loss reads faces; an unselected photo changed, a selected one renamed, a held-out one changed",
    "a selected photo whose caption was edited, renamed, copied and given a film beside it",
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.long] * (name in LONG)) for name in TABLE])
def test_an_edit_starts_what_depends_on_it(name: str, project: Project, finished: Path, tmp_path: Path) -> None:
    project.house = copy_house(tmp_path / "house")
    follow(Scene(project, finished), TABLE[name])
