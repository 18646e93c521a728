"""Noise levels against closed-form distributions, noise by its moments, learning rates against diffusers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers.optimization import get_scheduler
from scipy import stats

from likeness.config.training import ScheduleSettings, SigmaSettings
from likeness.training.noise import generator_for
from likeness.training.schedule import lr_at
from likeness.training.sigmas import draw_sigma, shift_for, shift_sigma

PUBLISHED = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}


def logit_normal_cdf(sigma, scale=1.0, bias=0.0):
    return stats.norm.cdf((np.log(sigma / (1 - sigma)) - bias) / scale)


def shifted_cdf(sigma, shift, **rest):
    # sigma = s·u / (1 + (s − 1)·u), solved for u
    return logit_normal_cdf(sigma / (shift - (shift - 1) * sigma), **rest)


@pytest.mark.parametrize(
    ("settings", "shift", "cdf"),
    [
        (SigmaSettings(distribution="uniform"), 1.0, stats.uniform.cdf),
        (SigmaSettings(distribution="sigmoid"), 1.0, logit_normal_cdf),
        (SigmaSettings(distribution="sigmoid", scale=1.7, bias=-0.4), 1.0, lambda x: logit_normal_cdf(x, 1.7, -0.4)),
        (SigmaSettings(distribution="shifted", shift=3.0), 3.0, lambda x: shifted_cdf(x, 3.0)),
        (SigmaSettings(distribution="shifted", shift=0.5, bias=0.3), 0.5, lambda x: shifted_cdf(x, 0.5, bias=0.3)),
    ],
)
def test_noise_levels_follow_their_distribution(settings, shift, cdf):
    drawn = [draw_sigma(settings, generator_for(7, "sample", step), shift) for step in range(3000)]
    assert min(drawn) > 0 and max(drawn) < 1
    assert stats.kstest(drawn, cdf).pvalue > 0.01
    # The test can fail: a slightly different distribution is told apart.
    assert stats.kstest(drawn, lambda x: cdf(np.clip(np.asarray(x) * 0.9, 1e-9, 1))).pvalue < 1e-3


@pytest.mark.parametrize(("tokens", "shift"), [(1024, 1.88), (2304, 2.33), (4096, 3.16), (9216, 7.51)])
def test_the_linear_shift_is_the_schedulers(tokens, shift):
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    settings = SigmaSettings(distribution="shifted")
    found = shift_for(settings, tokens, PUBLISHED)
    assert found == pytest.approx(math.exp(calculate_shift(tokens, 256, 4096, 0.5, 1.15)), rel=1e-12)
    assert found == pytest.approx(shift, abs=0.006)
    assert shift_for(SigmaSettings(distribution="shifted", shift=2.5), tokens, PUBLISHED) == 2.5


def test_shifting_agrees_with_the_schedulers_own_time_shift():
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    sigmas = np.linspace(0.05, 1, 20)
    other = scheduler.time_shift(0.9, 1.0, sigmas)
    assert np.allclose([shift_sigma(sigma, math.exp(0.9)) for sigma in sigmas], other, atol=1e-12)


def test_draws_hang_on_their_address_alone():
    one = generator_for(1, "sample", 3, "abc", 0).standard_normal(8)
    generator_for(2, "order", 0).standard_normal(100)
    assert np.array_equal(one, generator_for(1, "sample", 3, "abc", 0).standard_normal(8))
    others = [(2, "sample", 3, "abc", 0), (1, "order", 3, "abc", 0), (1, "sample", 4, "abc", 0),
              (1, "sample", 3, "abd", 0), (1, "sample", 3, "abc", 1)]  # fmt: skip
    for seed, stream, *address in others:
        assert not np.allclose(one, generator_for(seed, stream, *address).standard_normal(8))


def test_noise_is_standard_normal_and_independent_between_samples():
    first = generator_for(0, "sample", 0, "a", 0).standard_normal(20000, dtype=np.float32)
    second = generator_for(0, "sample", 0, "b", 0).standard_normal(20000, dtype=np.float32)
    assert stats.kstest(first, stats.norm.cdf).pvalue > 0.01
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03


@pytest.mark.parametrize("warmup", [0, 1, 7])
@pytest.mark.parametrize("name", ["constant", "cosine"])
def test_learning_rates_agree_with_diffusers(name, warmup):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    other = get_scheduler(
        "constant_with_warmup" if name == "constant" else name,
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=30,
    )
    settings = ScheduleSettings(name=name, warmup_steps=warmup)
    for step in range(30):
        assert lr_at(step, settings, 3e-4, 30) == pytest.approx(other.get_last_lr()[0], rel=1e-9, abs=1e-15)
        optimizer.step()
        other.step()
