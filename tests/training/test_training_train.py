"""Whole trainings through the library's front door: found finished, continued, resumed, chained."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from tests.tiny import tiny_transformer

from likeness.config.training import TrainingSettings, TrainStage
from likeness.errors import UserError
from likeness.klein.family import layout_of
from likeness.lora.dora import Dora, read_adapter
from likeness.lora.files import Verified, read_lora
from likeness.lora.inspect import inspect_lora
from likeness.store import sha256_of_file
from likeness.tables import LOG, read_rows
from likeness.training import run as run_module
from likeness.training import train as train_module
from likeness.training.base import open_base
from likeness.training.files import verify_weights
from likeness.training.frozen import block_linears, linear_at
from likeness.training.train import VERSION, steps_sum, train_lora, training_key

DEFAULTS = Path(__file__).with_name("golden_defaults.json")


@pytest.fixture(autouse=True)
def verify_once(monkeypatch, request):
    """Loading back through diffusers costs more than a tiny step, so only the tests about it do it every time."""
    if "pipeline" in request.node.name or "killed" in request.node.name or "finished" in request.node.name:
        return

    def read_only(path, *_):
        found = read_adapter(path)
        lora = found.lora if isinstance(found, Dora) else found
        return Verified(len(lora.modules), 1.0, sha256_of_file(path))

    monkeypatch.setattr(run_module, "verify_weights", read_only)


def train(world, out="out", previous=None, init="scratch", **changes):
    stage = world.train_stage(init=init, **changes)
    return train_lora(stage, world.manifest, world.encoded, previous, world.store, world.root / out)


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_training_writes_steps_and_log_and_is_then_found_finished(photo_world):
    world = photo_world
    assert world.encode() == 2
    outcome = train(world)
    assert (outcome.computed, outcome.reused) == (6, 0)
    steps = json.loads((world.root / "out/steps.json").read_text())
    assert [entry["step"] for entry in steps] == [2, 4, 6]
    assert all(sha256_of_file(world.root / "out" / entry["file"]) == entry["sha256"] for entry in steps)
    log = read_rows(world.root / "out/log.parquet", LOG)
    assert [row["step"] for row in log] == [1, 2, 3, 4, 5, 6]
    before = bytes_of(world.root / "out")
    (world.root / "out/steps.json").unlink()
    (world.root / "out/step-000004.safetensors").write_bytes(b"broken")
    again = train(world)
    assert (again.computed, again.reused, again.models_loaded) == (0, 6, 0)
    assert bytes_of(world.root / "out") == before


def test_a_compiled_model_is_gone_before_held_out_losses_load_another(photo_world, monkeypatch):
    trained = []

    def compile_blocks(transformer, _):
        transformer.compile_repeated_blocks(backend="eager")
        trained.append(weakref.ref(linear_at(transformer, block_linears(transformer)[0]).weight))

    def measured(*_):
        assert trained and trained[0]() is None
        return {}

    photo_world.encode()
    monkeypatch.setattr(run_module, "speed_up", compile_blocks)
    monkeypatch.setattr(train_module, "measure_held_out", measured)
    gc.disable()
    try:
        assert train(photo_world, steps=2).computed == 2
    finally:
        gc.enable()


class Killed(BaseException):
    """Stands for SIGKILL inside a test: nothing in the library catches it."""


def kill_at(monkeypatch, place: str, at: int):
    """Make a kill at the `at`-th call of `place`: before a step, before or after a record is written."""
    calls = {"count": 0}

    def counted(real):
        def wrapped(*args, **kwargs):
            calls["count"] += 1
            if calls["count"] == at:
                raise Killed
            return real(*args, **kwargs)

        return wrapped

    module_path, _, name = place.rpartition(".")
    owner = pytest.importorskip(module_path)
    monkeypatch.setattr(owner, name, counted(getattr(owner, name)))


PLACES = [
    *[("likeness.training.loop.train_step", step) for step in range(1, 7)],
    # A save writes the state, then the record; between them and before them lie the moments that could tear.
    *[("likeness.training.records.write_atomically", write) for write in range(1, 7)],
    ("likeness.training.run.save_checkpoint", 2),
    ("likeness.training.run.verify_weights", 1),
    ("likeness.training.train.write_table", 1),
]
FULL = {"batch_size": 2, "gradient_accumulation": 2}


CHOSEN = [PLACES[1], PLACES[4], PLACES[7], PLACES[8], PLACES[12]]


EMA = {"ema": {"decay": 0.9}}
PRODIGY = {**EMA, "optimizer": {"name": "prodigy"}, "learning_rate": 1.0}
FREE = {"optimizer": {"name": "schedulefree"}}
KAHAN = {**EMA, "optimizer": {"name": "adamw_kahan"}, "adapter_precision": "bfloat16", "precision": "bfloat16"}


@pytest.mark.parametrize(
    ("changes", "places"),
    [
        (EMA, CHOSEN),
        ({"optimizer": {"name": "adamw8bit"}}, CHOSEN[1:2]),
        (PRODIGY, CHOSEN[1:3]),
        (FREE, CHOSEN[1:2]),
        (KAHAN, CHOSEN[1:2]),
        pytest.param(PRODIGY, PLACES, marks=pytest.mark.slow),
    ],
)
def test_a_killed_training_ends_with_the_same_bytes(pair_world, monkeypatch, changes, places):
    """With accumulation and references always, and with the average and optimizers that keep numbers of their own."""
    world = pair_world
    world.encode()
    settings = {**FULL, **changes}
    train(world, "straight", **settings)
    expected = bytes_of(world.root / "straight")
    assert len(expected) == 2 + 3 * (2 if "ema" in changes else 1)
    trainings = world.store.root / "trainings"
    for number, (place, at) in enumerate(places):
        trainings.rename(world.root / f"trainings-{number}")
        torch.rand(number + 1)  # the global generator is disturbed: it must not matter
        with monkeypatch.context() as patch:
            kill_at(patch, place, at)
            with pytest.raises(Killed):
                train(world, f"killed-{number}", **settings)
        outcome = train(world, f"killed-{number}", **settings)
        assert bytes_of(world.root / f"killed-{number}") == expected, (place, at)
        assert outcome.computed + outcome.reused == 6


def test_resume_starts_at_the_last_state(photo_world, monkeypatch):
    photo_world.encode()
    with monkeypatch.context() as patch:
        kill_at(patch, "likeness.training.loop.train_step", 6)
        with pytest.raises(Killed):
            train(photo_world)
    assert train(photo_world).computed == 2


def test_more_steps_continue_and_fewer_are_read_off(photo_world):
    world = photo_world
    world.encode()
    train(world, "straight", steps=8)
    expected = bytes_of(world.root / "straight")
    (world.store.root / "trainings").rename(world.root / "gone")
    assert train(world, steps=4).computed == 4
    assert train(world, steps=8).computed == 4
    assert bytes_of(world.root / "out") == expected
    fewer = train(world, "fewer", steps=4)
    assert (fewer.computed, fewer.reused) == (0, 4)
    assert [row["step"] for row in read_rows(world.root / "fewer/log.parquet")] == [1, 2, 3, 4]
    cosine = {"schedule": {"name": "cosine"}}
    train(world, "cosine", steps=4, **cosine)
    assert train(world, "cosine", steps=8, **cosine).computed == 8


def test_a_denser_grid_of_checkpoints_gives_the_same_bytes(photo_world):
    world = photo_world
    world.encode()
    train(world, save_every=3)
    outcome = train(world, "dense", save_every=1)
    assert outcome.computed <= 6
    for name in ("step-000003.safetensors", "step-000006.safetensors", "log.parquet"):
        if name.endswith("parquet"):
            assert read_rows(world.root / "dense" / name) == read_rows(world.root / "out" / name)
        else:
            assert (world.root / "dense" / name).read_bytes() == (world.root / "out" / name).read_bytes()
    sparse = train(world, "dense", save_every=6)
    assert sparse.computed == 0
    assert [path.name for path in sorted((world.root / "dense").glob("step-*"))] == ["step-000006.safetensors"]


@pytest.mark.parametrize("damaged", ["state-000006", "record-000006", "blob", "all states"])
def test_damage_is_ignored_and_training_goes_on_from_the_last_good_state(photo_world, damaged, caplog):
    world = photo_world
    world.encode()
    train(world, steps=6)
    expected = bytes_of(world.root / "out")
    (folder,) = (world.store.root / "trainings").iterdir()
    if damaged == "blob":
        sha256 = json.loads((world.root / "out/steps.json").read_text())[-1]["sha256"]
        flip(world.store.blob_path(sha256))
        (world.root / "out/step-000006.safetensors").unlink()
    elif damaged == "all states":
        for path in folder.glob("state-*"):
            flip(path)
        cut(folder / "record-000006.json")
    else:
        (path,) = folder.glob(damaged + ".*")
        (cut if damaged.startswith("record") else flip)(path)
    outcome = train(world, steps=6)
    assert bytes_of(world.root / "out") == expected
    # A state is only needed to go on; a finished training does without it. A blob is written again from its own state.
    assert outcome.computed == {"state-000006": 0, "record-000006": 2, "blob": 0, "all states": 6}[damaged]
    longer = train(world, "longer", steps=8)
    assert longer.computed == (4 if damaged == "state-000006" else 2)
    assert ("damaged" in caplog.text or "ignored" in caplog.text) is True


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def test_phases_chain_by_weights_with_a_fresh_optimizer(photo_world):
    world = photo_world
    world.encode()
    train(world, "first", steps=4)
    previous = world.root / "first/steps.json"
    (world.root / "first/step-000004.safetensors").unlink()  # a by-product: it comes back from the store
    train(world, "second", previous=previous, init="previous", steps=2)
    assert (world.root / "first/step-000004.safetensors").exists()
    by_path = train(world, "path", init=str(world.root / "first/step-000004.safetensors"), steps=2)
    assert by_path.computed == 0, "the same weights are the same start, however they are named"
    train(world, "scratch", init="scratch", previous=previous, steps=2)
    assert (world.root / "scratch/step-000002.safetensors").read_bytes() == (
        world.root / "first/step-000002.safetensors"
    ).read_bytes()
    losses = [row["loss"] for row in read_rows(world.root / "second/log.parquet")]
    assert losses != [row["loss"] for row in read_rows(world.root / "first/log.parquet")][:2]


def test_weights_of_another_rank_or_scale(photo_world):
    world = photo_world
    world.encode()
    train(world, "first", steps=2, alpha=4)
    start = str(world.root / "first/step-000002.safetensors")
    with pytest.raises(UserError, match=r"rank 3 needs"):
        train(world, "other", init=start, rank=3, steps=2)
    with pytest.raises(UserError, match="other modules"):
        train(world, "other", init=start, targets="single_all", steps=2)
    path, layout = world.root / "first/step-000002.safetensors", layout_of(tiny_transformer().config)
    found = run_module.starting_weights(path, world.train_stage().training, layout)
    plain = read_lora(world.root / "first/step-000002.safetensors").modules["transformer_blocks.0.attn.to_q"]
    assert plain.scale == 2.0
    assert torch.equal(found["transformer_blocks.0.attn.to_q.lora_B.weight"], 2.0 * plain.B_OR.float())


def test_settings_that_matter_train_anew_and_others_do_not(photo_world):
    world = photo_world
    world.encode()
    train(world, steps=2)
    assert train(world, steps=2, alpha=2.0).computed == 0
    assert train(world, steps=2, seed=43).computed == 2
    assert train(world, steps=2, learning_rate=2e-2).computed == 2


def test_the_average_is_saved_beside_the_raw_weights(photo_world):
    world = photo_world
    world.encode()
    train(world, "plain", steps=4)
    train(world, "both", steps=4, ema={"decay": 0.9})
    steps = json.loads((world.root / "both/steps.json").read_text())
    assert [(entry["weights"], entry["others"][0]["weights"]) for entry in steps] == [("ema", "raw")] * 2
    raw = read_lora(world.root / "both" / steps[-1]["others"][0]["file"]).modules
    plain = read_lora(world.root / "plain/step-000004.safetensors").modules
    average = read_lora(world.root / "both/step-000004.safetensors").modules
    assert all(torch.equal(raw[name].B_OR, plain[name].B_OR) for name in plain), "averaging trains as without"
    assert any(not torch.equal(average[name].B_OR, plain[name].B_OR) for name in plain)
    swapped = train(world, "both", steps=4, ema={"decay": 0.9, "evaluate": "raw"})
    assert swapped.computed == 0
    again = json.loads((world.root / "both/steps.json").read_text())
    assert [entry["sha256"] for entry in again] == [entry["others"][0]["sha256"] for entry in steps]
    train(world, "both", steps=4)
    assert len(list((world.root / "both").glob("step-*"))) == 2


def test_automatic_steps_are_shown_with_their_arithmetic(photo_world, capsys):
    photo_world.encode()
    rows = read_rows(photo_world.encoded)
    settings = photo_world.train_stage(steps="auto", rank=128, batch_size=2).training
    text = steps_sum(settings, rows)
    assert text.startswith(
        "steps: auto = max(500, 20 × 5 samples) = 500 at rank 128; × batch 2 × accumulation 1 = 1000"
    )
    assert text.endswith("= 142.9 epochs of 7")
    train(photo_world, steps=2)
    assert "steps: 2; × batch 1 × accumulation 1 = 2 samples = 0.3 epochs of 7" in capsys.readouterr().out


def test_new_settings_leave_the_names_of_trainings_alone():
    """Only what differs from a default counts, so a changed default needs a new VERSION; new keys are only written down.

    `GOLDEN=write pytest tests/training -k names` writes the file.
    """
    settings = TrainingSettings()
    key = training_key([], settings, "base", None)
    assert key == training_key([], TrainingSettings.model_validate(settings.model_dump()), "base", None)
    assert (VERSION, key[:16]) == (2, "d3748255c0aac972"), "trainings of the defaults have another name"
    found = {"version": VERSION, "defaults": settings.model_dump(mode="json")}
    if os.environ.get("GOLDEN") == "write":
        DEFAULTS.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    frozen = json.loads(DEFAULTS.read_text())
    changed = {
        name
        for name, value in frozen["defaults"].items()
        if name in found["defaults"] and value != found["defaults"][name]
    }
    assert not changed or frozen["version"] != VERSION, (
        f"defaults of {changed} changed: raise VERSION, or write new keys down"
    )
    assert frozen == found, "write the new keys down with GOLDEN=write"


def test_a_distilled_base_is_refused(photo_world, tmp_path_factory):
    from tests.tiny import save_tiny

    photo_world.base = tmp_path_factory.mktemp("distilled") / "base"
    save_tiny(photo_world.base, seed=3, is_distilled=True)
    photo_world.encode()
    with pytest.raises(UserError, match="distilled"):
        train(photo_world, steps=2)
    assert train(photo_world, steps=2, allow_distilled=True).computed == 2


def test_a_loss_that_is_not_finite_stops_before_the_update(photo_world, monkeypatch):
    world = photo_world
    world.encode()
    from likeness.training.losses import objective

    real, calls = objective.Term.values, []

    def poisoned(term, seen):
        calls.append(term.name)
        return real(term, seen) * (float("nan") if len(calls) == 3 else 1.0)

    monkeypatch.setattr(objective.Term, "values", poisoned)
    with pytest.raises(UserError, match=r"step 3: the loss is nan.*learning_rate"):
        train(world)
    monkeypatch.setattr(objective.Term, "values", real)
    assert train(world).computed == 4, "steps 1 and 2 were kept"


def test_a_stale_encoded_table_and_an_empty_phase_are_refused(photo_world):
    from likeness.tables import ENCODED, MANIFEST, write_table

    world = photo_world
    world.encode()
    write_table(world.encoded, ENCODED, read_rows(world.encoded)[1:])
    with pytest.raises(UserError, match="4 samples at resolution_px 32, which are not the 5"):
        train(world)
    write_table(world.manifest, MANIFEST, [])
    with pytest.raises(UserError, match="has no sample"):
        train(world)


def test_only_the_tensors_that_are_read_count(photo_world):
    world = photo_world
    world.encode()
    train(world, steps=2, masked_loss={"kind": None}, caption_dropout=0.0)
    world.mask_kind = None
    world.encode()
    outcome = train(world, "other", steps=2, masked_loss={"kind": None}, caption_dropout=0.0)
    assert outcome.computed == 0, "an unread mask changes nothing"


def test_steps_load_into_the_pipeline_and_change_it(photo_world):
    from diffusers import Flux2KleinPipeline

    world = photo_world
    world.encode()
    train(world)
    pipeline = Flux2KleinPipeline.from_pretrained(world.base)
    pipeline.load_lora_weights(world.root / "out", weight_name="step-000006.safetensors")
    adapted = [module for module in pipeline.transformer.modules() if hasattr(module, "lora_A")]
    assert len(adapted) == 2 * 12 + 3 * 2
    assert all(module.lora_B["default_0"].weight.abs().max() > 0 for module in adapted)


def test_a_finished_training_is_recognised_without_loading_torch(photo_world):
    world = photo_world
    world.encode()
    asked = world.train_stage(steps=2).model_dump(mode="json")
    train_lora(TrainStage.model_validate(asked), world.manifest, world.encoded, None, world.store, world.root / "out")
    settings = json.dumps({"settings": asked, "code": "digest"})
    flags = ["--settings", settings, "--manifest", world.manifest, "--encoded", world.encoded]
    flags += ["--store", world.store.root, "--output-folder", world.root / "again"]
    code = "import sys; sys.path.insert(0, 'scripts'); import train_lora; print(train_lora.main()); assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, flags)], cwd="scripts/..", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "work: training-steps 0 computed, 2 reused; models loaded 0"
    assert bytes_of(world.root / "again") == bytes_of(world.root / "out")


@pytest.mark.parametrize("kind", ["lora", "dora", "lokr"])
def test_the_pipeline_saves_checkpoints_of_a_warm_up_that_has_not_begun_to_learn(photo_world, kind):
    """Step 1 has the rate 0; its file is the bare model's, is scored like any other, and can be started from."""
    world, changes = photo_world, {"save_every": 1, "steps": 3, "adapter": {"kind": kind}, "ema": {"decay": 0.9}}
    world.encode()
    with_warm_up = {**changes, "schedule": {"warmup_steps": 2}}
    assert train(world, **with_warm_up).computed == 3
    log = read_rows(world.root / "out/log.parquet", LOG)
    assert [row["learning_rate"] > 0 for row in log] == [False, True, True]
    files = [world.root / "out" / f"step-{step:06d}.safetensors" for step in (1, 2, 3)]
    assert train(world, "next", init=str(files[0]), **changes).computed == 3
    if kind == "dora":
        return
    found = [inspect_lora(path) for path in files]
    norms = [sum(block.norm for block in one.blocks) for one in found]
    assert norms[0] == 0 and 0 < norms[1] < norms[2]
    base = open_base(world.train_stage().base_model, offline=True)
    assert verify_weights(files[0], base, found[0].modules, may_change_nothing=True)
    with pytest.raises(UserError, match=r"changes nothing: .* take a later checkpoint"):
        verify_weights(files[0], base, found[0].modules, may_change_nothing=False)
