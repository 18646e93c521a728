"""Two processes train the same adapter as one: same samples, same losses, same weights but for the order of a sum."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.training.test_training_loop import made_data, made_sample, made_training, run_steps
from tests.training.test_training_resume import with_class
from tests.training.test_training_train import bytes_of, train, verify_once  # noqa: F401

from likeness.config.load import load_project
from likeness.config.training import TrainingSettings
from likeness.errors import UserError
from likeness.lora.files import read_lora
from likeness.store import canonical_json
from likeness.tables import read_rows
from likeness.training.launch import JOB, SCRIPTS, WORKER, launcher
from likeness.training.team import Team
from likeness.workflow import Plan

SHARED = {"gradient_accumulation": 4, "batch_size": 2, "ema": {"decay": 0.9}, "learning_rate": 1e-3}


def moved_trainings(world, name: str) -> None:
    (world.store.root / "trainings").rename(world.root / name)


def test_two_processes_give_the_curve_of_one_and_go_on_with_it(photo_world):
    world = photo_world
    world.encode()
    assert train(world, "one", **SHARED).computed == 6
    moved_trainings(world, "gone")
    assert train(world, "two", **SHARED, processes=2, steps=4).computed == 4
    assert train(world, "two", **SHARED, steps=6).computed == 2, "the number of processes is no part of its name"
    assert train(world, "again", **SHARED, processes=4).computed == 0
    assert_one_curve(world)
    again, two = (bytes_of(world.root / name) for name in ("again", "two"))
    assert {name for name in two if again[name] != two[name]} == {"log.parquet"}, "whose metadata tells the settings"


def assert_one_curve(world) -> None:
    """What was trained in `one` process and in `two` is the same but for the order of a sum."""
    one, two = (read_rows(world.root / name / "log.parquet") for name in ("one", "two"))
    for first, second in zip(one, two, strict=True):
        assert first["samples"] == second["samples"] and first["sample_sigmas"] == second["sample_sigmas"]
        assert second["loss"] == pytest.approx(first["loss"], abs=1e-6)
        assert second["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-4)
        assert second["sample_losses"] == pytest.approx(first["sample_losses"], abs=1e-5)
    for name in ("step-000006.safetensors", "step-000006-raw.safetensors"):
        modules = read_lora(world.root / "two" / name).modules
        for module, expected in read_lora(world.root / "one" / name).modules.items():
            assert torch.allclose(modules[module].B_OR, expected.B_OR, atol=1e-5), (name, module)
            assert expected.B_OR.abs().max() > 1e-4


def test_two_processes_share_pictures_of_the_class_as_well(photo_world):
    """Of each step's five micro-batches one is of the class, so a process has three and the other two."""
    world = with_class(photo_world)
    world.encode(regularisation_caption="a photo of a human")
    losses = {"prior_preservation": {"weight": 0.7, "ratio": 0.25}}
    assert train(world, "one", **SHARED, losses=losses).computed == 6
    moved_trainings(world, "gone")
    assert train(world, "two", **SHARED, losses=losses, processes=2).computed == 6
    assert_one_curve(world)
    one, two = (read_rows(world.root / name / "log.parquet") for name in ("one", "two"))
    for first, second in zip(one, two, strict=True):
        assert second["loss_prior_preservation"] == pytest.approx(first["loss_prior_preservation"], abs=1e-6)
        assert first["loss_prior_preservation"] > 0


def test_a_mistake_that_a_process_finds_is_told(photo_world):
    world = photo_world
    world.encode()
    train(world, "first", steps=2)
    start = str(world.root / "first/step-000002.safetensors")
    with pytest.raises(UserError, match=r"training in 2 processes: .*rank 3 needs"):
        train(world, "other", init=start, rank=3, steps=2, processes=2, gradient_accumulation=2)
    assert not list((world.store.root / "trainings").glob("*/.workers*"))


def test_shares_cover_a_step_without_overlap_and_occurrences_count_over_all():
    training = made_training(made_data([made_sample(0)]), gradient_accumulation=4)
    whole = training.plan.step_batches(0, 4)
    places, draws = [], {}
    from likeness.training.loop import draw_samples

    for rank in range(3):
        training.team = Team(rank, 3)
        own = training.own_samples(whole)
        places += own
        found = draw_samples(training, whole, training.team.share(4))
        draws |= dict(zip(own, [draw for batch in found for draw in batch], strict=True))
    assert sorted(places) == [0, 1, 2, 3]
    everything = [draw for batch in draw_samples(training, whole) for draw in batch]
    assert [draws[place].sigma for place in range(4)] == [draw.sigma for draw in everything]
    assert len({draw.sigma for draw in everything}) == 4


def test_one_process_is_what_it_was():
    training = run_steps(made_training(made_data([made_sample(0), made_sample(1)]), gradient_accumulation=2), 3)
    assert training.team == Team(0, 1) and len(training.log) == 3
    table = torch.tensor([[1.0, 2.0]])
    assert torch.equal(Team().unite([], table, [0, 1], 2), table.double())


DRIFTED = """
import sys
import torch
from accelerate import PartialState
from likeness.errors import UserError
from likeness.training.team import Team

state = PartialState(cpu=True)
team = Team(state.process_index, state.num_processes)
weights = [torch.nn.Parameter(torch.arange(6.0).view(2, 3)), torch.nn.Parameter(torch.ones(2), requires_grad=False)]
weights[0].grad = torch.full((2, 3), 1.0 + team.rank)
table = team.unite(weights, torch.tensor([[10.0 + team.rank]]), [team.rank], 2)
assert torch.equal(table, torch.tensor([[10.0, 11.0]], dtype=torch.float64)), table
assert torch.equal(weights[0].grad, torch.full((2, 3), 3.0)) and weights[1].grad is None
team.check_equal(weights, 1)
if team.rank == 1:
    weights[0].data[0, 0] += 1e-6
try:
    team.check_equal(weights, 2)
except UserError as error:
    print("told", error, flush=True)
state.destroy_process_group()
"""


def test_gradients_are_summed_and_adapters_that_drift_apart_are_noticed(tmp_path: Path):
    script = tmp_path / "drifted.py"
    script.write_text(DRIFTED)
    command = launcher(2, script)
    command = [*command[: command.index("-m", 3)], str(script)]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("step 2: the processes no longer hold the same adapter") == 2


def test_more_processes_than_micro_batches_are_refused():
    with pytest.raises(ValueError, match="must not be more than gradient_accumulation"):
        TrainingSettings(processes=2)


SUBJECT = """\
subjects:
  robin:
    recipe: style
    trigger: r0bin
    photos: data
    variants: {main: {}, pair: {training: {processes: 2, gradient_accumulation: 2}}}
"""


def test_a_job_asks_for_a_gpu_for_each_of_its_processes(tmp_path: Path):
    (tmp_path / "config").mkdir()
    (tmp_path / "config/config.yaml").write_text(SUBJECT)
    plan = Plan(load_project(tmp_path))
    (phase,) = plan.subjects["robin"].phases
    found = {
        variant: plan.gpus_of_training(SimpleNamespace(subject="robin", variant=variant, phase=phase))
        for variant in ("main", "pair")
    }
    assert found == {"main": 1, "pair": 2}


def processes_with(text: str) -> list[int]:
    """Processes of this machine whose command line holds a text."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text in path.read_bytes().decode(errors="replace"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_a_worker_whose_job_is_dead_before_it_looks_ends(tmp_path, monkeypatch):
    """Its launcher may have died while the worker was still loading, so that no signal reaches it."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    monkeypatch.setenv(JOB, str(gone.pid))
    done = subprocess.run(
        [sys.executable, "-m", WORKER, str(tmp_path / "job.json")],
        env=os.environ | {"PYTHONPATH": str(SCRIPTS)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1 and "the job that this worker belongs to is dead" in done.stderr


@pytest.mark.slow
def test_the_processes_end_with_the_job_that_started_them(photo_world):
    """Killed at its start or while it trains, a job leaves no process behind that would write beside the next one."""
    world = photo_world
    world.encode()
    stage = world.train_stage(steps=100_000, save_every=100_000, processes=2, gradient_accumulation=2)
    settings = canonical_json({"settings": stage.model_dump(mode="json"), "code": ""})
    flags = ["--settings", settings, "--manifest", world.manifest, "--encoded", world.encoded]
    flags += ["--store", world.store.root, "--output-folder", world.root / "out"]
    job = subprocess.Popen([sys.executable, str(SCRIPTS / "train_lora.py"), *map(str, flags)])
    try:
        wait_for(lambda: len(processes_with(str(world.store.root) + "/trainings")) >= 3)
    finally:
        job.send_signal(signal.SIGKILL)
        job.wait()
    wait_for(lambda: not processes_with(str(world.store.root) + "/trainings"))
    assert processes_with(str(world.store.root) + "/trainings") == []


def wait_for(condition, seconds: float = 120) -> None:
    end_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.2)
