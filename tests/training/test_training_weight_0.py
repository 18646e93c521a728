"""A loss of weight 0 costs no gradient, and changes nothing against one whose gradient is taken and multiplied by 0."""

from __future__ import annotations

import pytest
import torch
from tests.training.test_training_loop import made_data, made_sample, made_training, run_steps
from tests.training.test_training_losses import B, C, L, made_seen

from likeness.config.losses import VelocityLossSettings
from likeness.training.losses import objective
from likeness.training.losses.objective import Objective, Report, Seen, Term, WatchedObjective
from likeness.training.losses.velocity import weighted_error

SLIDER = {"target": "a person", "positive": "old", "negative": "young", "preserve": ["tall"]}
ONLY_WATCHED = {"velocity": {"weight": 0.0}}
CASES = {
    "slider alone": {**ONLY_WATCHED, "slider": SLIDER},
    "slider alone in a window": {**ONLY_WATCHED, "slider": {**SLIDER, "sigma_min": 0.5}},
    "preservation is watched": {"output_preservation": {"weight": 0.0}, "masked_prior": {"weight": 0.0}},
    "preservation alone": {**ONLY_WATCHED, "output_preservation": {}},
    "gradients are compared": {"output_preservation": {}, "masked_prior": {}, "slider": SLIDER},
    "gradients are compared with 0": {**ONLY_WATCHED, "output_preservation": {}, "masked_prior": {}, "slider": SLIDER},
}


def multiplied_by_0(plain: type[Objective]) -> type[Objective]:
    """The same objective, which takes the gradient of every term."""

    class WithEveryGradient(plain):
        learns_from_prediction = True  # pyright: ignore

        def __call__(self, seen, samples_of_step):
            terms, report = {}, Report()
            for term in self.terms:
                values_B = term.values(seen) * seen.batch.scale_B
                terms[term.name] = term.settings.weight * values_B.sum() / max(1, samples_of_step[term.of_class])
                report.values[term.name] = [values_B.detach()]
            return terms, report

    return WithEveryGradient


def made(losses, **changes):
    samples = [made_sample(index, masked=True) for index in range(3)]
    values = {"batch_size": 1, "learning_rate": 1e-2, "masked_loss": {"kind": "head"}, "losses": losses, **changes}
    return made_training(made_data(samples), **values)


@pytest.mark.parametrize("case", CASES)
def test_weights_and_log_are_those_of_gradients_times_0(case):
    found, expected = made(CASES[case]), made(CASES[case])
    assert isinstance(found.objective, WatchedObjective) == case.startswith("gradients")
    expected.objective = multiplied_by_0(type(expected.objective))(expected.objective.terms)
    run_steps(found, 6)
    run_steps(expected, 6)
    assert found.log == expected.log
    assert all(torch.equal(found.weights[name], expected.weights[name]) for name in found.weights)
    if "window" in case:
        norms = [row.grad_norm for row in found.log]
        assert norms[0] and not all(norms), "some steps see a watched loss alone, after the optimizer has moved"


@pytest.mark.parametrize(
    ("case", "with_gradient", "without"),
    [("slider alone", 1, 4), ("preservation is watched", 1, 3), ("gradients are compared", 3, 5)],
)
def test_only_what_is_learned_from_is_prepared_for_a_gradient(case, with_gradient, without, monkeypatch):
    training, real, asked = made(CASES[case]), objective.predict_velocity, []

    def spy(*args):
        asked.append(torch.is_grad_enabled())
        return real(*args)

    monkeypatch.setattr(objective, "predict_velocity", spy)
    run_steps(training, 1)
    assert (asked.count(True), asked.count(False)) == (with_gradient, without)


def test_what_a_watched_loss_derives_is_not_shared_with_one_that_learns():
    def of_image(seen: Seen) -> torch.Tensor:
        return weighted_error(seen.clean_BLC, seen.batch.latents_BLC, seen.batch.weights_BL)

    predicted = torch.ones(B, L, C, requires_grad=True)
    seen = made_seen(predicted, torch.zeros(B, L, C), torch.ones(B, L))
    watched = Term("watched", VelocityLossSettings(weight=0.0), of_image)
    learned = Term("learned", VelocityLossSettings(), of_image)
    both = Objective((watched, learned))
    terms, report = both(seen, {False: B})
    both.backward(terms, [], 0)
    assert predicted.grad is not None and predicted.grad.abs().min() > 0
    assert torch.equal(*(report.values[name][0] for name in ("watched", "learned")))
