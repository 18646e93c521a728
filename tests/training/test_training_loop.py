"""One step against the pipeline and against itself split otherwise; the golden curve of twenty steps.

Axes: B samples, L target tokens, R reference tokens, T text tokens, C latent channels, D embedding width.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from diffusers import Flux2KleinPipeline
from tests.tiny import tiny_transformer

from likeness.config.training import TrainingSettings
from likeness.errors import UserError
from likeness.klein.family import layout_of
from likeness.tables import read_rows
from likeness.training.adapter import adapter_weights, add_adapter
from likeness.training.data import Sample, TrainingData, load_samples
from likeness.training.loop import Training, draw_samples, look, train, train_step
from likeness.training.losses.objective import predict
from likeness.training.noise import generator_for
from likeness.training.optimizers import make_optimizer

GOLDEN = Path(__file__).with_name("golden_loss.txt")
"""Twenty losses. Where a change of the numerics is meant to move them: `GOLDEN=write pytest tests/training -k golden`,
and say why in docs/decisions.md."""

SCHEDULER = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}


def normal(*address, shape):
    return torch.from_numpy(generator_for(0, "test", *address).standard_normal(shape, dtype="float32"))


def made_sample(index: int, references: int = 0, grid=(4, 4), masked: bool = False) -> Sample:
    length = grid[0] * grid[1]
    weights_L = 0.1 + 0.9 * (torch.arange(length) < length // 2).float() if masked else torch.ones(length)
    return Sample(
        f"{index:064x}",
        1,
        (grid, ((2, 3),) * references),
        normal(index, "latents", shape=(length, 16)),
        normal(index, "references", shape=(6 * references, 16)),
        normal(index, "embedding", shape=(12, 96)),
        weights_L,
        (1 - weights_L) / 0.9,
        normal(index, "class", shape=(12, 96)),
    )


class AnyPrompt(dict):
    """Embeddings of whatever prompt is asked for."""

    def __missing__(self, prompt: str) -> torch.Tensor:
        return normal("prompt", prompt, shape=(12, 96))


def made_data(samples) -> TrainingData:
    empty_TD = normal("empty", shape=(12, 96))
    return TrainingData({one.sample_id: one for one in samples}, empty_TD, torch.device("cpu"), AnyPrompt())


def made_training(data, **changes) -> Training:
    values = {"rank": 4, "learning_rate": 2e-2, "steps": 20, "precision": "float32", "caption_dropout": 0.1} | changes
    settings = TrainingSettings.model_validate(values)
    transformer = tiny_transformer(seed=1)
    layout = layout_of(transformer.config)
    weights = add_adapter(transformer, settings, layout)
    optimizer = make_optimizer(weights.values(), settings.optimizer)
    return Training(transformer, weights, optimizer, data, settings, SCHEDULER, layout)


def run_steps(training, steps):
    train(training, steps, lambda _: None)
    return training


def test_golden_loss_curve():
    samples = [
        made_sample(0),
        made_sample(1, references=1, masked=True),
        made_sample(2, references=2),
        made_sample(3, masked=True),
    ]
    training = run_steps(
        made_training(
            made_data(samples),
            batch_size=2,
            gradient_accumulation=2,
            sigma={"distribution": "shifted"},
            schedule={"name": "cosine", "warmup_steps": 3},
        ),
        20,
    )
    lines = [f"{step} {row.loss:.6f} {row.grad_norm:.6f}" for step, row in enumerate(training.log, start=1)]
    if os.environ.get("GOLDEN") == "write":
        GOLDEN.write_text("\n".join(lines) + "\n")
    golden = [list(map(float, line.split())) for line in GOLDEN.read_text().splitlines()]
    found = [list(map(float, line.split())) for line in lines]
    assert len(golden) == 20
    for expected, row in zip(golden, found, strict=True):
        assert row == pytest.approx(expected, rel=2e-3)


def in_double(training) -> Training:
    """The same training in float64, so that only the arithmetic of splitting is left to differ."""
    training.transformer.double()
    training.optimizer = make_optimizer(training.weights.values(), training.settings.optimizer)
    return training


@pytest.mark.parametrize("references", [0, 2])
@pytest.mark.parametrize("weighting", ["none", "bell"])
def test_two_times_two_equals_four(references, weighting):
    samples = [made_sample(index, references, masked=index % 2 == 0) for index in range(8)]
    changes = {"learning_rate": 1e-3, "losses": {"velocity": {"weighting": weighting, "sigma_min": 0.3}}}
    whole = run_steps(in_double(made_training(made_data(samples), batch_size=4, **changes)), 4)
    split = made_training(made_data(samples), batch_size=2, gradient_accumulation=2, **changes)
    split = run_steps(in_double(split), 4)
    for one, other in zip(whole.log, split.log, strict=True):
        assert one.samples == other.samples and one.sample_sigmas == other.sample_sigmas
        assert one.loss == pytest.approx(other.loss, abs=1e-7)
        assert one.sample_losses == pytest.approx(other.sample_losses, abs=1e-7)
    for name, weight in whole.weights.items():
        assert (weight - split.weights[name]).abs().max() < 1e-7, name


def fixed_loss(training) -> float:
    """Mean squared error over the draws of sixteen steps, whatever step the training is at."""
    (sample_id,) = training.data.samples
    now, training.step = training.step, 0
    losses = []
    for training.step in range(16):
        ((draw,),) = draw_samples(training, [[sample_id]])
        with torch.no_grad():
            seen = look(training, [sample_id], [draw])
        losses.append((seen.predicted_BLC - (draw.noise_LC[None] - seen.batch.latents_BLC)).square().mean().item())
    training.step = now
    return sum(losses) / len(losses)


def test_the_loss_of_the_same_draws_goes_down():
    training = made_training(made_data([made_sample(0)]), caption_dropout=0.0)
    before = fixed_loss(training)
    run_steps(training, 40)
    assert fixed_loss(training) < 0.95 * before


def test_only_the_adapter_is_trained_and_stays_float32():
    training = made_training(made_data([made_sample(0)]))
    training.transformer.to(torch.bfloat16)
    for weight in training.weights.values():
        weight.data = weight.data.float()
    frozen = {name: value.clone() for name, value in training.transformer.named_parameters() if not value.requires_grad}
    run_steps(training, 3)
    assert all(
        torch.equal(value, dict(training.transformer.named_parameters())[name]) for name, value in frozen.items()
    )
    assert all(weight.dtype == torch.float32 for weight in training.weights.values())
    assert any(weight.abs().max() > 0 for name, weight in training.weights.items() if "lora_B" in name)


def test_what_chance_decides_hangs_on_sample_step_and_occurrence():
    training = made_training(made_data([made_sample(0), made_sample(1)]), caption_dropout=0.5)
    first, second = sorted(training.data.samples)
    ((one, two, again),) = draw_samples(training, [[first, second, first]])
    ((swapped,), (alone,)) = draw_samples(training, [[second], [first]])
    assert torch.equal(one.noise_LC, alone.noise_LC) and one.sigma == alone.sigma
    assert torch.equal(two.noise_LC, swapped.noise_LC)
    assert not torch.equal(one.noise_LC, again.noise_LC)
    training.step = 1
    assert draw_samples(training, [[first]])[0][0].sigma != one.sigma


def test_the_noise_offset_shifts_whole_channels():
    plain = made_training(made_data([made_sample(0)]))
    offset = made_training(made_data([made_sample(0)]), noise_offset=0.1)
    ids = [list(plain.data.samples)]
    shifts = []
    for step in range(200):
        plain.step = offset.step = step
        shift_LC = draw_samples(offset, ids)[0][0].noise_LC - draw_samples(plain, ids)[0][0].noise_LC
        assert (shift_LC - shift_LC[0]).abs().max() < 1e-6, "one draw a channel, the same for every token"
        shifts.append(shift_LC[0])
    assert torch.stack(shifts).std().item() == pytest.approx(0.1, rel=0.05)


def test_captions_are_dropped_at_the_configured_rate():
    training = made_training(made_data([made_sample(0)]), caption_dropout=0.3)
    dropped = 0
    for step in range(1000):
        training.step = step
        dropped += draw_samples(training, [list(training.data.samples)])[0][0].without_caption
    assert 250 < dropped < 350
    batch = training.data.batch([*training.data.samples] * 2, [True, False])
    assert torch.equal(batch.embeddings_BTD[0], training.data.empty_TD)
    assert not torch.equal(batch.embeddings_BTD[1], training.data.empty_TD)


def test_the_velocity_in_training_is_the_pipelines(pair_world, tiny_folder):
    """The pipeline's own helpers pack, place and join what training reads from the store, for 1 to 4 references."""
    pair_world.encode()
    pipeline = Flux2KleinPipeline.from_pretrained(tiny_folder)
    settings = pair_world.train_stage().training
    rows = read_rows(pair_world.encoded)
    data = load_samples(rows, settings, pair_world.store, torch.device("cpu"))
    from likeness.training.encode import read_tensors

    for row in rows:
        batch = data.batch([row["sample_id"]], [False])
        noise_BLC = normal(row["sample_id"], shape=tuple(batch.latents_BLC.shape))
        with torch.no_grad():
            noised_BLC = 0.63 * batch.latents_BLC + 0.37 * noise_BLC
            found = predict(pipeline.transformer, batch, noised_BLC, torch.tensor([0.37]))
            tensors = read_tensors(pair_world.store, [row["latents_sha256"], *row["reference_latents_sha256s"]])
            target_BCHW = tensors[row["latents_sha256"]][None]
            references = [tensors[sha256][None] for sha256 in row["reference_latents_sha256s"]]
            noisy_BLC = 0.63 * pipeline._pack_latents(target_BCHW) + 0.37 * noise_BLC
            packed = torch.cat([pipeline._pack_latents(one) for one in references], dim=1)
            ids = torch.cat([pipeline._prepare_latent_ids(target_BCHW), pipeline._prepare_image_ids(references)], dim=1)
            other = pipeline.transformer(
                hidden_states=torch.cat([noisy_BLC, packed], dim=1),
                timestep=torch.tensor([0.37]),
                guidance=None,
                encoder_hidden_states=batch.embeddings_BTD,
                txt_ids=pipeline._prepare_text_ids(batch.embeddings_BTD),
                img_ids=ids,
                return_dict=False,
            )[0][:, : noisy_BLC.shape[1]]
        assert torch.allclose(found, other, atol=1e-5)
    assert [len(one.group[1]) for one in data.samples.values()] == [1, 1, 2, 3, 4]


def test_the_logged_loss_is_the_mean_over_the_samples_of_the_step():
    samples = [made_sample(0), made_sample(1, references=1), made_sample(2, references=1)]
    training = made_training(made_data(samples), batch_size=2, gradient_accumulation=2)
    batches = training.plan.step_batches(0, 2)
    drawn = draw_samples(training, batches)
    losses = []
    with torch.no_grad():
        for ids, draws in zip(batches, drawn, strict=True):
            for sample_id, draw in zip(ids, draws, strict=True):
                seen = look(training, [sample_id], [draw])
                losses.append((seen.predicted_BLC - (seen.noise_BLC - seen.batch.latents_BLC)).square().mean().item())
    row = train_step(training)
    assert row.loss == pytest.approx(sum(losses) / 3, rel=1e-5)
    assert row.sample_losses == pytest.approx(losses, rel=1e-5)
    assert row.sample_sigmas == [draw.sigma for draws in drawn for draw in draws]
    assert row.losses["velocity"] == row.loss


def test_the_adapter_starts_by_seed_and_name_alone():
    layout = layout_of(tiny_transformer().config)
    settings = TrainingSettings(rank=4, precision="float32")
    torch.manual_seed(1)
    one = add_adapter(tiny_transformer(), settings, layout)
    torch.manual_seed(2)
    fewer = add_adapter(tiny_transformer(), settings.model_copy(update={"targets": "single_all"}), layout)
    assert len(one) == 2 * 30 and len(fewer) == 2 * 6
    assert all(torch.equal(one[name], weight) for name, weight in fewer.items())
    for name, weight in one.items():
        if "lora_B" in name:
            assert weight.abs().max() == 0
        else:
            assert 0.9 < weight.abs().max() * weight.shape[1] ** 0.5 <= 1
    gaussian = add_adapter(tiny_transformer(), settings.model_copy(update={"init": "gaussian"}), layout)
    downs = torch.cat([weight.flatten() for name, weight in gaussian.items() if "lora_A" in name])
    assert downs.std().item() == pytest.approx(1 / 4, rel=0.03)


def test_alpha_scales_the_adapter():
    transformer = tiny_transformer()
    settings = TrainingSettings(rank=4, alpha=2, precision="float32")
    add_adapter(transformer, settings, layout_of(transformer.config))
    scales = {module.scaling["default"] for module in transformer.modules() if hasattr(module, "scaling")}
    assert scales == {0.5}
    assert len(adapter_weights(transformer)) == 60


@pytest.mark.parametrize(("targets", "match"), [("nothing", "matches no linear"), ("all_blocks@double=7", "block 7")])
def test_targets_that_are_not_there_are_refused(targets, match):
    transformer = tiny_transformer()
    with pytest.raises(UserError, match=match):
        add_adapter(transformer, TrainingSettings(targets=targets), layout_of(transformer.config))
