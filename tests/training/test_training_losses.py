"""The loss against plain means, closed-form gradients and brute force; optimizers against each other."""

from __future__ import annotations

import pytest
import torch

from likeness.config.losses import LossesSettings, VelocityLossSettings
from likeness.config.training import OptimizerSettings, TrainingSettings
from likeness.errors import UserError
from likeness.training.data import Batch, TrainingData, outside_mask, sample_weights
from likeness.training.losses.make import make_objective
from likeness.training.losses.objective import Objective, Seen, Term
from likeness.training.losses.velocity import VelocityLoss, sigma_weights, weighted_error
from likeness.training.optimizers import make_optimizer
from likeness.training.weights import right_half, token_weights, with_face

B, L, C = 3, 10, 4
NO_DATA = TrainingData({}, torch.zeros(1, 1), torch.device("cpu"))


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    predicted = torch.randn(B, L, C, generator=generator).requires_grad_()
    return predicted, torch.randn(B, L, C, generator=generator), torch.rand(B, L, generator=generator)


def made_seen(predicted, target, weights, sigmas=(0.2, 0.5, 0.9)) -> Seen:
    """A micro-batch whose true velocity is `target`: clean latents of 0, so that noise is the target."""
    nothing = torch.zeros(0)
    batch = Batch(
        tuple("abc"[:B]),
        torch.zeros_like(target),
        None,
        torch.zeros(B, 1, 1),
        weights,
        torch.ones(B),
        1 - weights,
        None,
        nothing,
        nothing,
        None,
    )
    return Seen(None, batch, target, tuple(sigmas), predicted)


def test_a_mask_of_ones_is_the_plain_mean_squared_error(tensors):
    predicted, target, _ = tensors
    plain = torch.nn.functional.mse_loss(predicted, target).item()
    for weights in (torch.ones(B, L), token_weights(torch.ones(B, L), 0.0), token_weights(torch.zeros(B, L), 0.3)):
        terms, report = make_objective(LossesSettings(), NO_DATA)(made_seen(predicted, target, weights), {False: B})
        assert terms["velocity"].item() == pytest.approx(plain, rel=1e-6)
        assert report.table().mean().item() == pytest.approx(plain, rel=1e-6)


def test_weights_are_normalised_within_each_sample(tensors):
    predicted, target, weights = tensors
    found = weighted_error(predicted, target, weights)
    for b in range(B):
        total = sum(
            weights[b, place].item() * (predicted[b, place, c] - target[b, place, c]).item() ** 2
            for place in range(L)
            for c in range(C)
        )
        assert found[b].item() == pytest.approx(total / (C * sum(weights[b].tolist())), rel=1e-5)
    assert torch.allclose(weighted_error(predicted, target, 0.01 * weights), found)


def test_nothing_outside_the_mask_is_learned_with_unmasked_weight_0(tensors):
    predicted, target, _ = tensors
    mask = torch.zeros(B, L)
    mask[:, : L // 2] = 1
    weighted_error(predicted, target, token_weights(mask, 0.0)).mean().backward()
    assert torch.equal(predicted.grad[:, L // 2 :], torch.zeros(B, L - L // 2, C))
    assert predicted.grad[:, : L // 2].abs().min() > 0
    half = torch.nn.functional.mse_loss(predicted[:, : L // 2], target[:, : L // 2])
    found = weighted_error(predicted, target, token_weights(mask, 0.0)).mean()
    assert found.item() == pytest.approx(half.item(), rel=1e-6)


def test_the_gradient_is_the_closed_form(tensors):
    predicted, target, weights = tensors
    objective = make_objective(LossesSettings.model_validate({"velocity": {"weight": 3.0}}), NO_DATA)
    objective.backward(objective(made_seen(predicted, target, weights), {False: 5})[0], [], 0)
    closed = 3 * 2 * (predicted - target) * weights[..., None] / (C * weights.sum(dim=1)[:, None, None]) / 5
    assert torch.allclose(predicted.grad, closed.detach(), atol=1e-7)


def test_unmasked_weight_is_affine_in_the_mask():
    mask = torch.tensor([[0.0, 0.25, 1.0]])
    assert token_weights(mask, 0.1)[0].tolist() == pytest.approx([0.1, 0.325, 1.0])


def test_sigma_squared_makes_the_loss_that_of_the_image(tensors):
    """x̂0 − x0 = −σ·(v̂ − v): the squared error of the implied clean latents, computed without any velocity."""
    predicted, target, weights = tensors
    seen = made_seen(predicted, target, weights)
    of_image = (weights * (seen.clean_BLC - seen.batch.latents_BLC).square().mean(dim=-1)).sum(1) / weights.sum(1)
    found = VelocityLoss("sigma2")(seen)
    assert torch.allclose(found, of_image, atol=1e-6)


def test_the_bell_is_that_of_a_thousand_timesteps():
    """The published table: exp(−2·((t − 500)/1000)²) over 1000 timesteps, less its least value, with mean 1."""
    steps = torch.arange(1000, dtype=torch.float64)
    shape = torch.exp(-2 * ((steps - 500) / 1000) ** 2)
    table = (shape - shape.min()) * (1000 / (shape - shape.min()).sum())
    assert torch.allclose(sigma_weights(steps / 1000, "bell"), table, atol=2e-3)
    fine = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    assert sigma_weights(fine, "bell").mean().item() == pytest.approx(1, abs=1e-4)


def test_a_window_silences_samples_outside_and_never_shows_them(tensors):
    predicted, target, weights = tensors
    shown = []

    def spy(seen):
        shown.append(seen.sigmas)
        return weighted_error(seen.predicted_BLC, seen.target_BLC, seen.batch.weights_BL)

    term = Term("velocity", VelocityLossSettings(sigma_min=0.4, sigma_max=0.6), spy)
    values = term.values(made_seen(predicted, target, weights))
    alone = weighted_error(predicted, target, weights)
    assert shown == [(0.5,)]
    assert torch.equal(values, torch.stack([torch.zeros(()), alone[1].detach(), torch.zeros(())]))
    nothing = Objective((Term("velocity", VelocityLossSettings(sigma_min=0.95), spy),))
    terms, _ = nothing(made_seen(predicted, target, weights), {False: B})
    assert terms["velocity"].item() == 0 and len(shown) == 1


def test_an_inverted_mask_learns_what_the_mask_leaves_out():
    """Weights, and what the masked prior keeps, of the inverted mask are those of the plain setting for 1 − mask."""
    mask_HW = torch.tensor([[1.0, 0.25], [0.0, 0.5]])
    row = {"weight_sha256": "m", "face_box": None, "sample_id": "s"}
    inverted = TrainingSettings.model_validate(
        {"masked_loss": {"kind": "head", "unmasked_weight": 0, "inverted": True}}
    )
    plain = TrainingSettings.model_validate({"masked_loss": {"kind": "head", "unmasked_weight": 0}})
    found = sample_weights(row, {"m": mask_HW}, inverted, (2, 2))
    assert found.tolist() == [0.0, 0.75, 1.0, 0.5]
    assert torch.equal(found, sample_weights(row, {"m": 1 - mask_HW}, plain, (2, 2)))
    assert outside_mask(row, {"m": mask_HW}, inverted, (2, 2)).tolist() == mask_HW.flatten().tolist()
    with pytest.raises(UserError, match="nothing of its mask"):
        sample_weights(row, {"m": torch.ones(2, 2)}, inverted, (2, 2))


def test_a_face_counts_more_and_the_mean_weight_stays_one():
    face, mask = torch.zeros(4, 6), torch.rand(4, 6, generator=torch.Generator().manual_seed(1))
    face[1, 2:4] = 1.0
    weights = with_face(mask, face, 3.0)
    assert weights.mean().item() == pytest.approx(1, abs=1e-6)
    ratio = (weights / mask) / (weights / mask)[0, 0]
    assert torch.allclose(ratio, 1 + 3 * face)
    assert torch.allclose(with_face(torch.ones(4, 6), face, 0.0), torch.ones(4, 6))


def test_the_left_half_of_a_diptych_gets_no_gradient():
    weights = right_half(torch.ones(2, 6))
    assert weights.tolist() == [[0, 0, 0, 1, 1, 1]] * 2
    predicted = torch.randn(1, 12, C, requires_grad=True)
    weighted_error(predicted, torch.zeros(1, 12, C), weights.reshape(1, 12)).sum().backward()
    gradient = predicted.grad.reshape(2, 6, C)
    assert gradient[:, :3].abs().max() == 0 and gradient[:, 3:].abs().min() > 0
    with pytest.raises(ValueError, match="no seam"):
        right_half(torch.ones(2, 5))


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
