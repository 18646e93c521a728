"""The loss against plain means, closed-form gradients and brute force; optimizers against each other."""

from __future__ import annotations

import pytest
import torch

from likeness.config.training import OptimizerSettings
from likeness.training.losses import token_weights, velocity_loss
from likeness.training.optimizers import make_optimizer

B, L, C = 3, 10, 4


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    predicted = torch.randn(B, L, C, generator=generator).requires_grad_()
    return predicted, torch.randn(B, L, C, generator=generator), torch.rand(B, L, generator=generator)


def test_a_mask_of_ones_is_the_plain_mean_squared_error(tensors):
    predicted, target, _ = tensors
    for weights in (torch.ones(B, L), token_weights(torch.ones(B, L), 0.0), token_weights(torch.zeros(B, L), 0.3)):
        terms, report = velocity_loss(predicted, target, weights, B)
        assert terms["velocity"].item() == pytest.approx(
            torch.nn.functional.mse_loss(predicted, target).item(), rel=1e-6
        )
        assert report == {}


def test_weights_are_normalised_within_each_sample(tensors):
    predicted, target, weights = tensors
    expected = 0.0
    for b in range(B):
        total = sum(
            weights[b, place].item() * (predicted[b, place, c] - target[b, place, c]).item() ** 2
            for place in range(L)
            for c in range(C)
        )
        expected += total / (C * sum(weights[b].tolist())) / B
    found = velocity_loss(predicted, target, weights, B)[0]["velocity"]
    assert found.item() == pytest.approx(expected, rel=1e-5)
    assert velocity_loss(predicted, target, 0.01 * weights, B)[0]["velocity"].item() == pytest.approx(
        expected, rel=1e-5
    )


def test_nothing_outside_the_mask_is_learned_with_unmasked_weight_0(tensors):
    predicted, target, _ = tensors
    mask = torch.zeros(B, L)
    mask[:, : L // 2] = 1
    velocity_loss(predicted, target, token_weights(mask, 0.0), B)[0]["velocity"].backward()
    assert torch.equal(predicted.grad[:, L // 2 :], torch.zeros(B, L - L // 2, C))
    assert predicted.grad[:, : L // 2].abs().min() > 0
    half = torch.nn.functional.mse_loss(predicted[:, : L // 2], target[:, : L // 2])
    found = velocity_loss(predicted, target, token_weights(mask, 0.0), B)[0]["velocity"]
    assert found.item() == pytest.approx(half.item(), rel=1e-6)


def test_the_gradient_is_the_closed_form(tensors):
    predicted, target, weights = tensors
    velocity_loss(predicted, target, weights, 5)[0]["velocity"].backward()
    closed = 2 * (predicted - target) * weights[..., None] / (C * weights.sum(dim=1)[:, None, None]) / 5
    assert torch.allclose(predicted.grad, closed.detach(), atol=1e-7)


def test_unmasked_weight_is_affine_in_the_mask():
    mask = torch.tensor([[0.0, 0.25, 1.0]])
    assert token_weights(mask, 0.1)[0].tolist() == pytest.approx([0.1, 0.325, 1.0])


def run_optimizer(optimizer, parameter, steps=20):
    generator = torch.Generator().manual_seed(4)
    for _ in range(steps):
        parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.param_groups[0]["lr"] = 1e-2
        optimizer.step()
    return parameter.detach().clone()


def test_adamw_takes_its_settings():
    settings = OptimizerSettings(weight_decay=0.1, beta1=0.8, beta2=0.95, eps=1e-6)
    own, other = (torch.nn.Parameter(torch.ones(64, 80)) for _ in range(2))
    reference = torch.optim.AdamW([other], lr=1e-2, weight_decay=0.1, betas=(0.8, 0.95), eps=1e-6)
    assert torch.allclose(
        run_optimizer(make_optimizer([own], settings), own), run_optimizer(reference, other), atol=1e-6
    )


def test_the_first_step_of_adamw_is_the_closed_form():
    parameter = torch.nn.Parameter(torch.full((4,), 2.0))
    optimizer = make_optimizer([parameter], OptimizerSettings(weight_decay=0.1, eps=1e-8))
    parameter.grad = torch.tensor([1.0, -3.0, 0.5, -0.1])
    optimizer.param_groups[0]["lr"] = 0.01
    optimizer.step()
    expected = 2.0 - 0.01 * (torch.sign(parameter.grad) + 0.1 * 2.0)
    assert torch.allclose(parameter.detach(), expected, atol=1e-6)


def test_adamw8bit_stays_near_adamw():
    eight, full = (torch.nn.Parameter(torch.ones(64, 80)) for _ in range(2))
    eight_end = run_optimizer(make_optimizer([eight], OptimizerSettings(name="adamw8bit")), eight)
    full_end = run_optimizer(make_optimizer([full], OptimizerSettings()), full)
    assert not torch.equal(eight_end, full_end)
    assert (eight_end - full_end).abs().mean() < 0.1 * (full_end - 1).abs().mean()
