"""What is shown of a training while it runs: curves, pictures, and a line; none of it changes the training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.training.test_training_train import Killed, bytes_of, kill_at, train, verify_once  # noqa: F401

from likeness.config.training import SampleSettings
from likeness.tables import read_rows
from likeness.training import preview, progress
from likeness.training.adapter import load_weights
from likeness.training.base import open_base
from likeness.training.board import Board, memory
from likeness.training.data import load_samples
from likeness.training.files import starting_weights
from likeness.training.progress import Progress
from likeness.training.run import prepare

CPU = torch.device("cpu")
SAMPLES = {"prompts": ("somebody", "somebody else"), "steps": 3, "guidance": 2.0, "seed": 4}


def curves(folder, name: str) -> dict[int, float]:
    found = EventAccumulator(str(folder)).Reload()
    return {event.step: event.value for event in found.Scalars(name)}


def test_curves_hold_what_the_log_does_and_a_resume_takes_its_steps_again(photo_world, monkeypatch):
    world, out = photo_world, photo_world.root / "out"
    world.encode()
    with monkeypatch.context() as patch:
        kill_at(patch, "likeness.training.loop.train_step", 6)
        with pytest.raises(Killed):
            train(world, tensorboard=True)
    assert train(world, tensorboard=True).computed == 2
    log = read_rows(out / "log.parquet")
    for name, column in (
        ("loss/optimised", "loss"),
        ("step/learning_rate", "learning_rate"),
        ("step/grad_norm", "grad_norm"),
    ):
        found = curves(out / "tensorboard", name)
        assert sorted(found) == [1, 2, 3, 4, 5, 6]
        assert [found[row["step"]] for row in log] == pytest.approx([row[column] for row in log], rel=1e-6)
    assert curves(out / "tensorboard", "loss/velocity") == curves(out / "tensorboard", "loss/optimised")
    assert all(value > 0 for value in curves(out / "tensorboard", "speed/steps_a_second").values())
    assert train(world, "plain").computed == 0, "whether curves are written is no part of a training's name"
    assert not (world.root / "plain/tensorboard").exists()


def with_samples(world, **changes):
    stage = world.train_stage(samples=SAMPLES, **changes)
    world.encode(prompts=stage.training.prompts)
    return stage


def drawn_again(world, stage, step: int, place: int) -> np.ndarray:
    """The picture of a finished checkpoint's file, by a training that never took a step."""
    base = open_base(stage.base_model, offline=True)
    data = load_samples(read_rows(world.encoded), stage.training, world.store, torch.device("cpu"))
    training = prepare(base, stage.training, data, None)
    path = world.root / f"out/step-{step:06d}.safetensors"
    load_weights(training.weights, starting_weights(path, stage.training, base.layout), str(path))
    with torch.no_grad():
        return preview.draw_sample_of(training, base, SampleSettings.model_validate(SAMPLES), place)


@pytest.mark.parametrize("changes", [{}, {"ema": {"decay": 0.9}}, {"optimizer": {"name": "schedulefree"}}])
def test_pictures_are_those_of_the_saved_checkpoints_and_change_nothing(photo_world, changes):
    world = photo_world
    stage = with_samples(world, steps=4, **changes)
    assert train(world, "plain", steps=4, **changes).computed == 4
    (world.store.root / "trainings").rename(world.root / "gone")
    assert train(world, "out", steps=4, samples=SAMPLES, **changes).computed == 4
    names = [path.name for path in sorted((world.root / "out/samples").iterdir())]
    assert names == [f"step-{step:06d}-{place}.png" for step in (2, 4) for place in (0, 1)]
    pictures = {name: np.asarray(Image.open(world.root / "out/samples" / name)) for name in names}
    assert {one.shape for one in pictures.values()} == {(32, 32, 3)}
    assert len({one.tobytes() for one in pictures.values()}) == 4, "steps and prompts differ"
    assert np.array_equal(pictures["step-000004-1.png"], drawn_again(world, stage, 4, 1))
    (world.root / "out/samples").rename(world.root / "samples")
    out, plain = bytes_of(world.root / "out"), bytes_of(world.root / "plain")
    assert {name for name in out if out[name] != plain[name]} == {"log.parquet"}, "whose metadata tells the settings"


def out_of_memory(*_):
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_pictures_that_do_not_fit_into_memory_are_left_out(photo_world, monkeypatch, caplog):
    world = photo_world
    with_samples(world, steps=4)
    assert train(world, "plain", steps=4).computed == 4
    (world.store.root / "trainings").rename(world.root / "gone")
    monkeypatch.setattr(preview, "decode_latents", out_of_memory)
    assert train(world, "out", steps=4, samples=SAMPLES).computed == 4
    assert "step 4: out of memory after 0 of 2 pictures" in caplog.text
    out, plain = (
        {path.name: path.read_bytes() for path in (world.root / name).glob("*.safetensors")}
        for name in ("out", "plain")
    )
    assert out == plain and len(out) == 2


def test_a_checkpoint_is_saved_before_pictures_are_drawn(photo_world, monkeypatch):
    world = photo_world
    with_samples(world, steps=4)
    with monkeypatch.context() as patch:
        kill_at(patch, "likeness.training.preview.draw_sample_of", 1)
        with pytest.raises(Killed):
            train(world, "out", steps=4, samples=SAMPLES)
    assert train(world, "out", steps=4, samples=SAMPLES).computed == 2, "the first two are saved"


@pytest.mark.parametrize("read_by_a_loss", [False, True])
def test_the_vae_does_not_stay_in_memory_unless_a_loss_needs_it(photo_world, tmp_path, read_by_a_loss):
    world = photo_world
    stage = with_samples(world)
    base = open_base(stage.base_model, offline=True)
    data = load_samples(read_rows(world.encoded), stage.training, world.store, CPU)
    training = prepare(base, stage.training, data, None)
    training.vae = base.vae if read_by_a_loss else None
    settings = SampleSettings.model_validate(SAMPLES)
    assert len(preview.draw_samples_of(training, base, settings, tmp_path, Board(None, 0, CPU))) == 2
    assert ("vae" in base.__dict__) == read_by_a_loss


def test_the_peak_is_that_of_the_leased_gpu(monkeypatch):
    taken_bytes = {torch.device("cuda", 0): 2**30, torch.device("cuda", 3): 5 * 2**30}
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", taken_bytes.__getitem__)
    assert memory(torch.device("cuda", 3)) == {"memory/peak_gib": 5.0}
    assert memory(CPU) == {}


def test_an_edit_is_drawn_with_the_references_of_its_pairs(pair_world):
    world = pair_world
    stage = with_samples(world, steps=2)
    assert train(world, "out", steps=2, samples=SAMPLES, tensorboard=True).computed == 2
    base = open_base(stage.base_model, offline=True)
    data = load_samples(read_rows(world.encoded), stage.training, world.store, torch.device("cpu"))
    training = prepare(base, stage.training, data, None)
    for sample_id, sample in data.samples.items():
        found = preview.references_of(training, sample_id)
        assert [tuple(one.shape[1:]) for one in found] == list(sample.group[1])
        assert torch.equal(torch.cat([one.flatten(1).T for one in found]), sample.references_RC)
    events = EventAccumulator(str(world.root / "out/tensorboard")).Reload()
    assert sorted(events.Tags()["images"]) == ["samples/0 somebody", "samples/1 somebody else"]


def test_prompts_that_were_not_encoded_are_an_error(photo_world):
    from likeness.errors import UserError

    photo_world.encode()
    with pytest.raises(UserError, match="lacks prompts or sources that the training reads"):
        train(photo_world, samples=SAMPLES)


def test_a_board_without_a_folder_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    board = Board(None, 0, CPU)
    board.show_picture(1, "x", np.zeros((2, 2, 3), dtype=np.uint8))
    board.close()
    assert not list(tmp_path.iterdir())


def test_the_line_tells_loss_rate_and_time_left(capsys, monkeypatch):
    clock = iter([100.0, 105.0, 112.0, 120.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with Progress(10, 40) as shown:
        shown.show(11, 0.5, 1e-4)
        shown.show(16, 0.25, 1e-4)
        shown.show(40, 0.125, 5e-5)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "step 16/40  loss 0.2500  learning rate 1.00e-04  0.50 steps/s  48 s left",
        "step 40/40  loss 0.1250  learning rate 5.00e-05  1.50 steps/s  0 s left",
    ]
