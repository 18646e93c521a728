"""Losses that ask the bare model: preservation and sliders against forwards written out, and what they must leave alone."""

from __future__ import annotations

import logging

import pytest
import torch
from pydantic import ValidationError
from tests.tiny import tiny_transformer
from tests.training.test_training_loop import made_data, made_sample, made_training, run_steps

from likeness.config.losses import LossesSettings, SliderSettings
from likeness.config.training import EncodeStage
from likeness.errors import UserError
from likeness.klein.velocity import predict_velocity
from likeness.photos.images import read_images
from likeness.tables import MANIFEST, read_rows, write_table
from likeness.training.encode import class_caption
from likeness.training.loop import draw_samples, look
from likeness.training.train import train_lora

PRESERVED = {"output_preservation": {}}
PRIOR = {"masked_prior": {}}
SLIDER = {"target": "a person", "positive": "old", "negative": "young", "preserve": ["tall", "small"], "guidance": 2.0}
MASKED = {"masked_loss": {"kind": "head"}}


def seen_of(training):
    ids = [list(training.data.samples)]
    return look(training, ids[0], draw_samples(training, ids)[0])


def bare(seen, embeddings_BTD):
    """The base model asked directly: a fresh copy that never had an adapter."""
    batch = seen.batch
    with torch.no_grad():
        return predict_velocity(
            tiny_transformer(seed=1), seen.noisy_BLC, seen.sigma_B, embeddings_BTD, batch.target_ids, batch.text_ids
        )


def values_of(training, name, seen):
    (term,) = [term for term in training.objective.terms if term.name == name]
    return term.values(seen).detach()


def trained(**losses):
    samples = [made_sample(0, masked=True), made_sample(1)]
    training = made_training(made_data(samples), batch_size=2, losses=losses, **MASKED)
    return run_steps(training, 3)


@pytest.mark.parametrize("losses", [PRESERVED, PRIOR])
def test_preservation_starts_at_nothing(losses):
    training = made_training(made_data([made_sample(0, masked=True)]), losses=losses, **MASKED)
    (name,) = losses
    assert values_of(training, name, seen_of(training)).abs().max() < 1e-10


def test_output_preservation_is_the_error_of_two_forwards():
    training = trained(**PRESERVED)
    seen = seen_of(training)
    class_BTD = torch.stack([one.class_TD for one in training.data.samples.values()])
    with torch.no_grad():
        adapted = seen.predict(embeddings_BTD=class_BTD)
    expected = (adapted - bare(seen, class_BTD)).square().mean(dim=(1, 2))
    assert torch.allclose(values_of(training, "output_preservation", seen), expected, rtol=1e-4)
    assert expected.min() > 0


def test_the_masked_prior_looks_outside_of_the_mask_alone():
    training = trained(**PRIOR)
    seen = seen_of(training)
    difference = (seen.predicted_BLC.detach() - bare(seen, seen.batch.embeddings_BTD)).square().mean(dim=-1)
    half = difference.shape[1] // 2
    found = values_of(training, "masked_prior", seen)
    assert found[0].item() == pytest.approx(difference[0, half:].mean().item(), rel=1e-4)
    assert found[1].item() == 0, "a sample without a mask has no outside"


def test_a_slider_without_effect_is_as_far_off_as_its_direction_is_long():
    training = made_training(made_data([made_sample(0)]), losses={"slider": SLIDER})
    seen = seen_of(training)
    prompts = [training.data.prompts[one][None] for one in SliderSettings.model_validate(SLIDER).prompts]
    direction = sum(
        bare(seen, more) - bare(seen, less) for more, less in ((prompts[1], prompts[2]), (prompts[3], prompts[4]))
    )
    expected = 2.0**2 * direction.square().mean()
    assert values_of(training, "slider", seen)[0].item() == pytest.approx(expected.item(), rel=1e-3)


def test_a_slider_alone_moves_its_target_along_the_direction():
    losses = {"slider": SLIDER, "velocity": {"weight": 0.0}}
    training = made_training(made_data([made_sample(0)]), losses=losses, learning_rate=5e-3, steps=40)
    before = values_of(training, "slider", seen_of(training)).item()
    run_steps(training, 40)
    training.step = 0
    assert values_of(training, "slider", seen_of(training)).item() < 0.8 * before
    assert all(row.loss == pytest.approx(row.losses["slider"]) for row in training.log)


def test_attributes_stand_before_both_ends():
    assert SliderSettings.model_validate(SLIDER).prompts == (
        "a person",
        "tall old",
        "tall young",
        "small old",
        "small young",
    )
    plain = SliderSettings.model_validate({**SLIDER, "preserve": [""]})
    assert plain.prompts == ("a person", "old", "young")


def test_three_auxiliary_losses_are_warned_of_and_their_gradients_compared(caplog):
    losses = {**PRESERVED, **PRIOR, "slider": {**SLIDER, "weight": 0.5}}
    samples = [made_sample(index, masked=True) for index in range(4)]
    changes = {"losses": losses, "batch_size": 2, "gradient_accumulation": 2, **MASKED}
    with caplog.at_level(logging.WARNING):
        watched = made_training(made_data(samples), **changes)
    assert "3 auxiliary losses are on (output_preservation, masked_prior, slider)" in caplog.text
    run_steps(watched, 2)
    plain = made_training(made_data(samples), **changes)
    from likeness.training.losses.objective import Objective

    plain.objective = Objective(plain.objective.terms)
    run_steps(plain, 2)
    assert len(watched.log[0].grad_ratios) == 4 and watched.log[1].grad_ratios == []
    assert watched.log[0].grad_ratios[0] == 1 and plain.log[0].grad_ratios == []
    assert watched.log[0].grad_ratios[1:3] == [0, 0], "nothing has changed yet that would have to be kept"
    assert watched.log[0].grad_ratios[3] > 0
    for one, other in zip(watched.log, plain.log, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-5) and one.grad_norm == pytest.approx(
            other.grad_norm, rel=1e-5
        )
    caplog.clear()
    made_training(made_data(samples), losses=PRESERVED)
    assert "auxiliary" not in caplog.text


ENCODE = {"base_model": {"source": "x"}, "buckets": (), "mask_kind": None, "unmasked_weights": ()}


@pytest.mark.parametrize(
    ("trigger", "caption", "expected"),
    [
        ("j4ne", "photo of j4ne, smiling", "photo of woman, smiling"),
        ("j4ne", "photo of j4ne woman at sea", "photo of woman at sea"),
        ("j4ne", "j4nes is another word", "j4nes is another word"),
        ("j4ne", "J4NE Woman at sea", "woman at sea"),
        ("J4ne", "a j4ne's hat", "a woman's hat"),
        ("j4ne", "j4ne womanly at sea", "woman womanly at sea"),
        ("[v]", "a photo of [v] woman", "a photo of woman"),
        ("[v]", "[v], smiling, with x[v]", "woman, smiling, with x[v]"),
        ("v*", "V* woman and v*", "woman and woman"),
    ],
)
def test_the_class_takes_the_triggers_place(trigger, caption, expected):
    stage = EncodeStage.model_validate({**ENCODE, "trigger": trigger, "class_word": "woman"})
    assert class_caption(stage, caption) == expected
    with pytest.raises(UserError, match="trigger and class_word"):
        class_caption(EncodeStage.model_validate(ENCODE), caption)


def test_a_class_is_written_as_it_is():
    stage = EncodeStage.model_validate({**ENCODE, "trigger": "j4ne", "class_word": r"a\1"})
    assert class_caption(stage, "j4ne at sea") == r"a\1 at sea"


def test_captions_in_which_nothing_gives_way_to_the_class_are_warned_of_by_name(photo_world, caplog):
    world = photo_world
    rows = read_rows(world.manifest, MANIFEST)
    rows[1] = rows[1] | {"caption": "a photo of somebody"}
    write_table(world.manifest, MANIFEST, rows)
    world.encode(class_captions=True, trigger="PERSON", class_word="human")
    warned = [one.getMessage() for one in caplog.records if "output_preservation" in one.getMessage()]
    name = {image.sha256: image.path for image in read_images(world.images)}[rows[1]["image_sha256"]]
    assert len(warned) == 1 and f"{name}: its caption has no 'PERSON'" in warned[0]
    assert "a photo of somebody. Write the trigger into the caption" in warned[0]
    caplog.clear()
    world.encode()
    assert "output_preservation" not in caplog.text


def test_nothing_to_learn_is_refused():
    with pytest.raises(ValidationError, match="nothing would be learned"):
        LossesSettings.model_validate({"velocity": {"weight": 0}})


def test_a_whole_training_with_every_such_loss(photo_world):
    world = photo_world
    losses = {**PRESERVED, **PRIOR, "slider": {**SLIDER, "sigma_min": 0.2}}
    slider = SliderSettings.model_validate(SLIDER)
    changes = {"class_captions": True, "trigger": "person", "class_word": "human", "prompts": slider.prompts}
    world.encode()
    stage = world.train_stage(steps=2, losses=losses)
    with pytest.raises(UserError, match="lacks prompts"):
        train_lora(stage, world.manifest, world.encoded, None, world.store, world.root / "out")
    world.encode(**changes)
    assert train_lora(stage, world.manifest, world.encoded, None, world.store, world.root / "out").computed == 2
