"""Prior preservation: pictures of the class beside the subject's, against the plain loss and gradients written out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.training.conftest import photo_rows
from tests.training.test_training_loop import made_data, made_sample, made_training, run_steps
from tests.training.test_training_losses import made_seen

from likeness.config.losses import LossesSettings
from likeness.errors import UserError
from likeness.tables import PHOTOS, read_rows, write_table
from likeness.training.loop import draw_samples, gradients
from likeness.training.losses.make import make_objective
from likeness.training.train import train_lora

CAPTION = "a photo of a human"


def of_class(index: int):
    return replace(made_sample(index), of_class=True)


def with_class(weight: float = 1.0, ratio: float = 1.0, **changes):
    losses = {"prior_preservation": {"weight": weight, "ratio": ratio}, **changes.pop("losses", {})}
    samples = [made_sample(0), made_sample(1), of_class(10), of_class(11)]
    return made_training(made_data(samples), losses=losses, **changes)


def grads_of(training) -> dict[str, torch.Tensor]:
    gradients(training, training.step_batches(training.step))
    return {name: weight.grad.clone() for name, weight in training.weights.items() if weight.grad is not None}


def test_equal_pictures_give_one_plus_the_weight_times_the_plain_loss():
    predicted, target = (torch.randn(3, 10, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    seen = made_seen(predicted, target, torch.ones(3, 10))
    objective = make_objective(LossesSettings.model_validate({"prior_preservation": {"weight": 0.7}}), made_data([]))
    counts = {False: 3, True: 3}
    terms, _ = objective(seen, counts)
    class_terms, _ = objective(replace(seen, batch=replace(seen.batch, of_class=True)), counts)
    total = sum(terms.values()) + sum(class_terms.values())
    plain = torch.nn.functional.mse_loss(predicted, target)
    assert float(total) == pytest.approx(1.7 * float(plain), rel=1e-6)
    assert terms["prior_preservation"] == 0 and class_terms["velocity"] == 0


def test_the_gradient_is_that_of_both_added_up():
    both = grads_of(run_steps(with_class(0.3), 2))
    subject, prior = run_steps(with_class(0.3), 2), run_steps(with_class(0.3), 2)
    subject.class_plan = None
    ids = [one for one in prior.step_batches(2) if prior.data.samples[one[0]].of_class]
    of_subject = grads_of(subject)
    gradients(prior, ids)
    for name, weight in prior.weights.items():
        assert torch.allclose(both[name], of_subject[name] + weight.grad, atol=1e-6), name


def test_a_weight_of_0_is_the_plain_training():
    watched, plain = (
        run_steps(with_class(0.0), 4),
        run_steps(made_training(made_data([made_sample(0), made_sample(1)])), 4),
    )
    assert all(torch.allclose(watched.weights[name], weight, atol=1e-7) for name, weight in plain.weights.items())
    assert [row.loss for row in watched.log] == pytest.approx([row.loss for row in plain.log], rel=1e-6)
    assert all(row.losses["prior_preservation"] > 0 for row in watched.log)


@pytest.mark.parametrize(
    ("ratio", "expected"), [(1.0, [2] * 6), (0.25, [0, 1] * 3), (1 / 6, [0, 0, 1] * 2), (2.0, [4] * 6)]
)
def test_the_ratio_is_one_of_micro_batches(ratio, expected):
    training = with_class(ratio=ratio, gradient_accumulation=2)
    found = [[training.data.samples[ids[0]].of_class for ids in training.step_batches(step)] for step in range(6)]
    assert [sum(kinds) for kinds in found] == expected
    assert all(kinds[:2] == [False, False] for kinds in found)


def test_the_logged_loss_is_the_optimised_one():
    row = run_steps(with_class(0.5), 1).log[0]
    assert row.loss == pytest.approx(row.losses["velocity"] + 0.5 * row.losses["prior_preservation"], rel=1e-6)
    assert row.sample_losses == pytest.approx(
        [row.losses["velocity"], 0.5 * row.losses["prior_preservation"]], rel=1e-6
    )


def test_two_times_two_equals_four_with_pictures_of_the_class():
    def trained(**changes):
        samples = [made_sample(index) for index in range(4)] + [of_class(10 + index) for index in range(4)]
        training = made_training(made_data(samples), losses={"prior_preservation": {}}, learning_rate=1e-3, **changes)
        training.transformer.double()
        return run_steps(training, 3)

    whole, split = trained(batch_size=4), trained(batch_size=2, gradient_accumulation=2)
    assert [row.loss for row in whole.log] == pytest.approx([row.loss for row in split.log], abs=1e-7)


def test_captions_of_the_class_are_never_dropped():
    training = with_class(caption_dropout=0.9)
    ids = [sorted(training.data.samples)]
    dropped = [[draw.without_caption for draw in draw_samples(training, ids)[0]] for training.step in range(20)]
    assert not any(any(row[2:]) for row in dropped) and any(any(row[:2]) for row in dropped)


def test_pictures_of_the_class_are_encoded_and_trained_beside_the_phase(photo_world):
    world = photo_world
    table = world.root / "class.parquet"
    rows = photo_rows(world.root / "class", [(64, 64), (48, 48)])
    write_table(table, PHOTOS, [row | {"repeats": 1} for row in rows])
    world.encode()
    plain = world.train_stage(steps=2)
    train_lora(plain, world.manifest, world.encoded, None, world.store, world.root / "plain")
    stage = world.train_stage(steps=2, losses={"prior_preservation": {}})
    with pytest.raises(UserError, match="no pictures of the class"):
        train_lora(stage, world.manifest, world.encoded, None, world.store, world.root / "out")
    world.regularisation = [table]
    world.encode(regularisation_caption=CAPTION)
    encoded = [row for row in read_rows(world.encoded) if row["regularisation"]]
    assert len(encoded) == 2 and len({row["embedding_sha256"] for row in encoded}) == 1
    assert train_lora(plain, world.manifest, world.encoded, None, world.store, world.root / "plain").computed == 0
    assert train_lora(stage, world.manifest, world.encoded, None, world.store, world.root / "out").computed == 2
    log = read_rows(world.root / "out" / "log.parquet")
    class_ids = {row["sample_id"] for row in encoded}
    assert all(len(set(row["samples"]) & class_ids) == 1 and row["loss_prior_preservation"] > 0 for row in log)
