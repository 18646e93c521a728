"""Diptychs: joined and cut to the pixel, learned on the right half alone, drawn with the source kept on the left."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tests.training.conftest import BUCKETS, smooth_picture
from tests.training.test_training_loop import made_training

from likeness.config.evaluation import ScoreStage
from likeness.config.subject import Subject
from likeness.config.training import TrainingSettings
from likeness.evaluation.draw import Drawer, Request
from likeness.evaluation.prompts import GridPoint
from likeness.klein.diptych import diptych_caption, join, keep_left, right_of
from likeness.klein.latents import decode_latents
from likeness.photos.images import read_images
from likeness.tables import read_rows
from likeness.training.data import load_samples
from likeness.training.encode import read_tensors
from likeness.training.loop import draw_samples, look
from likeness.training.train import train_lora

DIPTYCH = BUCKETS.model_copy(update={"diptych": True, "max_aspect": 1.0})
RIGHT = {"velocity": {"region": "right_half"}}


def tiny_drawer_stage(base, buckets) -> ScoreStage:
    evaluation = {"sampling_steps": 3, "guidance_scale": 2.0, "batch_size": 2, "precision": "float32"}
    values = {
        "evaluation": evaluation,
        "prompts": {},
        "recipe": "edit",
        "kind": "pairs",
        "trigger": "",
        "class_word": "",
    }
    return ScoreStage.model_validate(values | {"base_model": {"source": str(base)}, "buckets": buckets.model_dump()})


def test_joining_and_cutting_is_exact():
    source, target = (smooth_picture(seed, 24, 16) for seed in (0, 1))
    joined = join(source, target)
    assert joined.shape == (16, 48, 3) and np.array_equal(right_of(joined, axis=1), target)
    assert np.array_equal(joined[:, :24], source)


def test_the_left_half_is_put_back_to_the_noised_source():
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(2, 5, 3, 4, generator=generator)
    noise, latents = (torch.randn(2, 24, 5, generator=generator) for _ in range(2))
    before = latents.clone()
    keep_left(source, noise)(0, 0.25, latents)
    grid, old, noisy = (one.reshape(2, 3, 8, 5) for one in (latents, before, noise))
    expected = 0.75 * source.permute(0, 2, 3, 1) + 0.25 * noisy[:, :, :4]
    assert torch.allclose(grid[:, :, :4], expected, atol=1e-6)
    assert torch.equal(grid[:, :, 4:], old[:, :, 4:])


def test_the_caption_says_what_is_on_the_halves_and_an_empty_one_stays_empty():
    assert diptych_caption("she smiles").endswith("the same as on the left but she smiles")
    assert diptych_caption("") == ""


def encoded_world(world):
    world.encode(buckets=(DIPTYCH,))
    return read_rows(world.encoded)


def test_source_and_target_are_encoded_as_one_picture(pair_world):
    """The right half decodes to what the target alone does, the left one to the source; no reference is left."""
    rows = encoded_world(pair_world)
    plain = {row["sample_id"]: row for row in rows}
    assert all(
        row["width_px"] == 64 and row["height_px"] == 32 and not row["reference_latents_sha256s"] for row in rows
    )
    row = rows[0]
    tensors = read_tensors(pair_world.store, [row["latents_sha256"]])
    assert tensors[row["latents_sha256"]].shape[1:] == (8, 16)
    pair_world.encode(buckets=(BUCKETS.model_copy(update={"max_aspect": 1.0}),))
    alone = {one["sample_id"]: one for one in read_rows(pair_world.encoded)}
    assert all(alone[name]["latents_sha256"] != one["latents_sha256"] for name, one in plain.items())
    assert all(alone[name]["embedding_sha256"] != one["embedding_sha256"] for name, one in plain.items())


def test_nothing_is_learned_of_the_source(pair_world):
    """The gradient of the loss at the prediction is 0 on every token of the left half, with and without a mask."""
    encoded_world(pair_world)
    settings = pair_world.train_stage(buckets=DIPTYCH, losses=RIGHT).training
    data = load_samples(read_rows(pair_world.encoded), settings, pair_world.store, torch.device("cpu"))
    training = made_training(data, buckets=DIPTYCH.model_dump(), losses=RIGHT, masked_loss={"kind": "head"})
    for name in sorted(data.samples):
        (draws,) = draw_samples(training, [[name]])
        seen = look(training, [name], draws)
        seen.predicted_BLC.retain_grad()
        terms, _ = training.objective(seen, {False: 1})
        terms["velocity"].backward()
        assert seen.predicted_BLC.grad is not None
        gradient = seen.predicted_BLC.grad[0].reshape(8, 16, -1)
        assert gradient[:, :8].abs().max() == 0 and gradient[:, 8:].abs().max() > 0


def test_a_diptych_is_trained_and_drawn_as_its_right_half(pair_world):
    world = pair_world
    encoded_world(world)
    stage = world.train_stage(steps=2, buckets=DIPTYCH, losses=RIGHT)
    assert train_lora(stage, world.manifest, world.encoded, None, world.store, world.root / "out").computed == 2
    images = {image.sha256: image for image in read_images(world.images)}
    source = next(image for image in images.values() if image.role == "source")
    drawer = Drawer(tiny_drawer_stage(world.base, DIPTYCH), world.store, images)
    point = GridPoint("p", "edit", "make the person smile", 1, "select", 32, 32, "p", (source.sha256,))
    kept = {}

    def spy(latents_BCHW):
        kept["left"] = latents_BCHW[..., :8].clone()
        return decode_latents(drawer._base.vae, latents_BCHW)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("likeness.klein.latents.decode_latents", lambda vae, latents_BCHW: spy(latents_BCHW))
        (sha256,) = drawer.draw([Request(point)]).values()
    from PIL import Image

    assert Image.open(world.store.blob_path(sha256)).size == (32, 32)
    encoder_latents = read_tensors(world.store, [drawer_source(drawer, point)])
    (latents,) = encoder_latents.values()
    assert torch.allclose(kept["left"][0], latents, atol=1e-5), "at the end the left half is the source itself"
    beside = Drawer(tiny_drawer_stage(world.base, BUCKETS), world.store, images)
    assert beside.key(Request(point)) != drawer.key(Request(point))


def drawer_source(drawer, point):
    from likeness.config.training import EncodeStage
    from likeness.training.encode import SampleEncoder

    stage = EncodeStage(base_model=drawer.model, buckets=(), mask_kind=None, unmasked_weights=())
    encoder = SampleEncoder(stage, drawer.store, drawer.images)
    return encoder.target(encoder.image_of(point.reference_sha256s[0]), (point.width_px, point.height_px))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"buckets": {"diptych": True}}, "must be right_half"),
        ({"buckets": {"diptych": True}, "losses": {**RIGHT, "prior_preservation": {}}}, "single pictures"),
    ],
)
def test_what_a_diptych_cannot_be_is_refused(changes, match):
    with pytest.raises(ValidationError, match=match):
        TrainingSettings.model_validate(changes)


@pytest.mark.parametrize("where", ["variants", "phases"])
@pytest.mark.parametrize("of_subject", [False, True])
def test_all_of_a_subject_are_diptychs_or_none(where, of_subject):
    """Its checkpoints are drawn alike, so one that was trained otherwise would be measured as what it is not."""
    one = {"buckets": {"diptych": True}, "losses": RIGHT}
    other = {"buckets": {"diptych": False}, "losses": {"velocity": {"region": "whole"}}}
    own, changed = (one, other) if of_subject else (other, one)
    values = {
        "recipe": "edit",
        "trigger": "t0k",
        "pairs": "data",
        "captions": {"instruction": "smile"},
        "training": own,
    }
    Subject.model_validate(values)
    with pytest.raises(ValidationError, match="drawn alike; make two subjects"):
        Subject.model_validate({**values, where: {"main": {"training": changed}}})


def test_photos_have_no_source():
    training = {"buckets": {"diptych": True}, "losses": RIGHT}
    with pytest.raises(ValidationError, match="no sources to put on the left"):
        Subject.model_validate({"trigger": "t0k", "photos": "data", "training": training})
