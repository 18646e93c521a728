"""Optimizers, schedules and the average against other implementations and closed forms."""

from __future__ import annotations

import pytest
import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from pydantic import ValidationError

from likeness.config.training import LOWEST_PRODIGY_RATE, OptimizerSettings, ScheduleSettings, TrainingSettings
from likeness.training.ema import Ema, decay_at
from likeness.training.optimizers import MAKERS, make_optimizer, weights_to_save
from likeness.training.schedule import lr_at
from likeness.training.state import pack_state, unpack_state

NAMES = sorted(MAKERS)


def parameter_for(name: str, shape=(64, 80), value: float = 1.0) -> torch.nn.Parameter:
    dtype = torch.bfloat16 if name == "adamw_kahan" else torch.float32
    return torch.nn.Parameter(torch.full(shape, value, dtype=dtype))


def steps_of(optimizer, parameters, numbers, rate=1e-2):
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_goes_on_bit_for_bit_from_its_state(name):
    def fresh():
        parameters = [parameter_for(name), parameter_for(name, (3, 5), 0.0)]
        return parameters, make_optimizer(parameters, OptimizerSettings(name=name))

    straight, optimizer = fresh()
    steps_of(optimizer, straight, range(8))
    first, before = fresh()
    steps_of(before, first, range(5))
    data, scalars = pack_state(dict(zip("ab", first, strict=True)), before)
    second, after = fresh()
    unpack_state(data, scalars, dict(zip("ab", second, strict=True)), after)
    steps_of(after, second, range(5, 8))
    assert all(torch.equal(one, other) for one, other in zip(straight, second, strict=True))
    assert not torch.equal(straight[0], parameter_for(name))


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_finds_the_bottom_of_a_bowl(name):
    """(w − 3)² from 1, which each must leave by most of the way; Prodigy has to find the distance by itself."""
    weight = parameter_for(name, (8, 8))
    optimizer = make_optimizer([weight], OptimizerSettings(name=name, weight_decay=0.0))
    for _ in range(400):
        loss = (weight.float() - 3.0).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = 1.0 if name == "prodigy" else 2e-2
        optimizer.step()
    with weights_to_save(optimizer, [weight]):
        assert (weight.float() - 3.0).abs().max() < 0.3


def test_kahan_summation_keeps_small_steps_that_bfloat16_loses():
    """Steps of 1e-4 on weights of 1: a bfloat16 cannot move by less than 1/256, so plain sums stand still."""
    start = torch.ones(64, 80)
    full = torch.nn.Parameter(start.clone())
    plain, kahan = (torch.nn.Parameter(start.to(torch.bfloat16)) for _ in range(2))
    settings = OptimizerSettings(weight_decay=0.0)
    runs = [
        (make_optimizer([full], settings), full),
        (torch.optim.AdamW([plain], weight_decay=0.0), plain),
        (make_optimizer([kahan], settings.model_copy(update={"name": "adamw_kahan"})), kahan),
    ]
    for optimizer, weight in runs:
        for _ in range(100):
            weight.grad = torch.ones_like(weight)
            optimizer.param_groups[0]["lr"] = 1e-4
            optimizer.step()
    assert full.detach().mean().item() == pytest.approx(1 - 100e-4, abs=1e-4)
    assert torch.equal(plain.detach(), start.to(torch.bfloat16))
    assert (kahan.detach().float() - full.detach()).abs().max() < 2**-8


def test_adafactor_moves_a_matrix_of_zeros_at_the_given_rate():
    """Its own scaling would multiply the rate by the matrix's size, floored at a thousandth: the published trap."""
    weight = torch.nn.Parameter(torch.zeros(16, 8))
    optimizer = make_optimizer([weight], OptimizerSettings(name="adafactor", weight_decay=0.0))
    steps_of(optimizer, [weight], [0], rate=1e-2)
    assert weight.detach().square().mean().sqrt().item() == pytest.approx(1e-2, rel=0.2)


def test_prodigy_does_not_care_for_the_scale_of_the_loss():
    ends = []
    for scale in (1.0, 1000.0):
        weight = torch.nn.Parameter(torch.ones(8, 8))
        optimizer = make_optimizer([weight], OptimizerSettings(name="prodigy", weight_decay=0.0, eps=1e-16))
        for _ in range(60):
            optimizer.zero_grad()
            (scale * (weight - 3.0).square().sum()).backward()
            optimizer.param_groups[0]["lr"] = 1.0
            optimizer.step()
        ends.append(weight.detach().clone())
    assert torch.allclose(ends[0], ends[1], rtol=1e-4)


@pytest.mark.parametrize(("rate", "learns"), [(1.0, True), (LOWEST_PRODIGY_RATE, True), (1e-2, False), (1e-4, False)])
def test_prodigy_learns_from_the_lowest_rate_on_that_settings_allow(rate, learns):
    """A fresh pair of low-rank factors, as an adapter has them, learns a product of its own rank."""
    torch.manual_seed(0)
    down_RI = torch.nn.Parameter(0.1 * torch.randn(4, 64))
    up_OR = torch.nn.Parameter(torch.zeros(64, 4))
    wanted_OI = 0.05 * torch.randn(64, 4) @ torch.randn(4, 64)
    optimizer = make_optimizer([down_RI, up_OR], OptimizerSettings(name="prodigy"))
    for _ in range(500):
        loss = (up_OR @ down_RI - wanted_OI).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
    assert ((up_OR @ down_RI - wanted_OI).square().mean() < 0.01 * wanted_OI.square().mean()).item() == learns


def test_schedule_free_weights_are_saved_as_the_average_and_training_goes_on_untouched():
    def run(look: bool):
        weight = torch.nn.Parameter(torch.ones(8, 8))
        optimizer = make_optimizer([weight], OptimizerSettings(name="schedulefree"))
        for number in range(6):
            steps_of(optimizer, [weight], [number])
            if look and number:
                inside = weight.detach().clone()
                with weights_to_save(optimizer, [weight]):
                    assert not torch.equal(weight, inside)
                assert torch.equal(weight, inside)
        return weight.detach()

    assert torch.equal(run(False), run(True))


RATES = {
    "constant": ("constant_with_warmup", {}, {}),
    "cosine": ("cosine", {}, {}),
    "polynomial": ("polynomial", {"power": 2.0, "end": 0.0}, {"power": 2.0}),
}


@pytest.mark.parametrize("name", sorted(RATES))
def test_schedules_are_those_of_diffusers(name):
    other_name, own, theirs = RATES[name]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    scheduler = get_scheduler(other_name, optimizer, num_warmup_steps=5, num_training_steps=40, **theirs)
    settings = ScheduleSettings(name=name, warmup_steps=5, **own)
    for step in range(40):
        # The reference ends at 1e-7 instead of 0.
        assert lr_at(step, settings, 1e-3, 40) == pytest.approx(scheduler.get_last_lr()[0], abs=1.01e-7)
        optimizer.step()
        scheduler.step()


def test_two_stages_are_those_of_torchs_multi_step():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-4)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[24], gamma=0.5)
    settings = ScheduleSettings(name="two_stage", end=0.5, stage_at=0.6)
    for step in range(40):
        assert lr_at(step, settings, 1e-4, 40) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("largest", [0.5, 0.9, 0.999])
def test_the_average_is_that_of_diffusers(largest):
    weight = torch.nn.Parameter(torch.zeros(4))
    reference = EMAModel([weight], decay=largest)
    own = Ema({"a": weight}, largest)
    for step in range(1, 40):
        weight.data = torch.randn(4, generator=torch.Generator().manual_seed(step))
        reference.step([weight])
        own.update({"a": weight}, step)
        assert decay_at(step, largest) == pytest.approx(reference.cur_decay_value)
    assert torch.allclose(own.weights["a"], reference.shadow_params[0], atol=1e-6)


def test_the_average_of_something_constant_is_that():
    weight = torch.full((3,), 7.0)
    own = Ema({"a": weight}, 0.99)
    for step in range(1, 20):
        own.update({"a": weight}, step)
    assert torch.equal(own.weights["a"], weight)


@pytest.mark.parametrize(
    ("rank", "samples", "expected"),
    [(32, 5, 500), (32, 31, 930), (16, 20, 600), (128, 31, 620), (128, 25, 500), (64, 40, 800), (63, 40, 1200)],
)
def test_automatic_steps_are_the_published_formulas(rank, samples, expected):
    settings = TrainingSettings(rank=rank, steps="auto")
    assert settings.resolve_steps(samples).fixed_steps == expected
    assert TrainingSettings(steps=77).resolve_steps(samples).fixed_steps == 77


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"optimizer": {"name": "schedulefree"}, "schedule": {"name": "cosine"}}, "must be constant"),
        ({"optimizer": {"name": "adamw_kahan"}}, "Kahan"),
        ({"adapter_precision": "bfloat16"}, "Kahan"),
        ({"optimizer": {"name": "schedulefree", "beta1": 0}}, "beta1 must be above 0"),
        ({"optimizer": {"name": "prodigy"}}, "set learning_rate: 1.0"),
        ({"optimizer": {"name": "schedulefree"}, "ema": {"decay": 0.9}}, "average already"),
        ({"steps": 10, "schedule": {"name": "polynomial", "warmup_steps": 10}}, "below steps"),
    ],
)
def test_what_does_not_fit_together_is_refused(values, match):
    with pytest.raises(ValidationError, match=match):
        TrainingSettings.model_validate(values)
