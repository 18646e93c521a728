"""No setting is lost in silence: it changes the export, or a warning names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.exports.project import MASKED, Project, config_of, files_below, keys_of

from likeness.config.training import TrainingSettings
from likeness.errors import UserError
from likeness.exports.export import EXPORTERS, exporter_of
from likeness.exports.files import WARNINGS_NAME
from likeness.exports.settings import DEFAULTS, NATIVE, Setting, in_files, key, missing, on_common_ground
from likeness.exports.simpletuner import SIMPLETUNER, SimpleTuner
from likeness.klein.targets import PRESETS

SETTINGS_TO_CHANGE: dict[str, st.SearchStrategy[Any]] = {
    "rank": st.integers(1, 256),
    "alpha": st.floats(0.5, 300),
    "targets": st.sampled_from([name for name in PRESETS if name != "all_blocks"]),
    "targets_from": st.just({"ablation": "blocks"}),
    "init": st.just("gaussian"),
    "steps": st.integers(60, 5000),
    "batch_size": st.integers(1, 64),
    "gradient_accumulation": st.integers(1, 64),
    "learning_rate": st.floats(1e-6, 1e-2),
    "optimizer.name": st.sampled_from(["adamw8bit", "prodigy"]),
    "optimizer.weight_decay": st.floats(0, 1),
    "optimizer.beta1": st.floats(0, 0.99),
    "optimizer.beta2": st.floats(0, 0.9999),
    "optimizer.eps": st.floats(1e-12, 1e-3),
    "schedule.name": st.just("cosine"),
    "schedule.warmup_steps": st.integers(0, 50),
    "sigma.distribution": st.sampled_from(["uniform", "shifted"]),
    "sigma.scale": st.floats(0.1, 5),
    "sigma.bias": st.floats(-5, 5),
    "sigma.shift": st.floats(0.5, 9),
    "masked_loss.kind": st.sampled_from(["face", "head", "person"]),
    "masked_loss.unmasked_weight": st.floats(0, 1),
    "masked_loss.inverted": st.just(True),
    "caption_dropout": st.floats(0, 0.99),
    "max_grad_norm": st.floats(0.01, 10),
    "buckets.resolution_px": st.integers(64, 2048),
    "buckets.bucket_step_px": st.integers(1, 256),
    "buckets.max_aspect": st.sampled_from([1.0, 1.3, 3.0, 4.0, 8.0]),  # values between two buckets change nothing
    "buckets.reference_resolution_px": st.integers(16, 2048),
    "buckets.diptych": st.just(True),
    "save_every": st.integers(1, 1000),
    "seed": st.integers(0, 10**6),
    "precision": st.just("float32"),
    "gradient_checkpointing": st.just(True),
    "allow_distilled": st.just(True),
    "cpu_threads": st.integers(1, 64),
    "losses.velocity.weight": st.floats(0.1, 2),
    "losses.velocity.weighting": st.sampled_from(["sigma2", "bell"]),
    "losses.velocity.sigma_min": st.floats(0.01, 0.4),
    "losses.velocity.sigma_max": st.floats(0.5, 0.9),
    "losses.velocity.face_weight": st.floats(0.1, 9),
    "losses.velocity.region": st.just("right_half"),
    "losses.output_preservation": st.just({"weight": 0.5}),
    "losses.prior_preservation": st.just({"ratio": 0.5}),
    "losses.masked_prior": st.none(),
    "losses.slider": st.just({"target": "a", "positive": "b", "negative": "c"}),
    "losses.image_slider": st.just({"prompt": "a"}),
    "losses.identity": st.just({"model": "x.onnx"}),
    "losses.lpips": st.just({"model": "x.pth"}),
    "losses.contrastive": st.just({"model": "clip"}),
    "ema.decay": st.floats(0.5, 0.99),
    "ema.evaluate": st.just("raw"),
    "adapter.kind": st.sampled_from(["dora", "lokr"]),
    "adapter.lokr_factor": st.sampled_from([2, 4]),
    "adapter.ranks": st.just({"single_all": 4}),
    "adapter.alphas": st.just({"single_all": 4.0}),
    "adapter.rows": st.just("qkv"),
    "adapter.orthogonal": st.just({"concept": 1}),
    "adapter.freeze": st.just("single_all"),
    "adapter.groups": st.just({"style": "single_all"}),
    "adapter_precision": st.just("float32"),
    "checkpoint_every": st.integers(2, 9),
    "held_out_sigmas": st.integers(1, 100),
    "noise_offset": st.floats(0.01, 0.1),
    "flip": st.floats(0.1, 1),
    "processes": st.just(1),
    "tensorboard": st.just(False),
    "samples": st.just({"prompts": ("a person",)}),
    "base_precision": st.sampled_from(["int8", "fp8", "fp8_matmul"]),
    "offload": st.just(("vae",)),
    "compile": st.just(True),
    "attention": st.just("math"),
    "resolutions_px": st.just((512,)),
    "schedule.power": st.floats(0.5, 0.9),
    "schedule.end": st.floats(0.1, 1),
    "schedule.stage_at": st.floats(0.1, 0.4),
}
PLAIN: dict[str, Any] = {
    "rank": 8,
    "alpha": 5.0,
    "targets": "attention",
    "targets_from": {"ablation": "blocks"},
    "steps": 77,
    "batch_size": 3,
    "gradient_accumulation": 3,
    "learning_rate": 3e-4,
    "optimizer.weight_decay": 0.2,
    "optimizer.beta1": 0.8,
    "optimizer.beta2": 0.95,
    "optimizer.eps": 1e-6,
    "schedule.warmup_steps": 9,
    "sigma.distribution": "shifted",
    "sigma.scale": 2.0,
    "sigma.bias": 0.5,
    "sigma.shift": 4.0,
    "masked_loss.kind": "face",
    "masked_loss.unmasked_weight": 0.7,
    "masked_loss.inverted": True,
    "caption_dropout": 0.3,
    "max_grad_norm": 2.0,
    "buckets.resolution_px": 512,
    "buckets.bucket_step_px": 32,
    "buckets.max_aspect": 3.0,
    "buckets.reference_resolution_px": 512,
    "buckets.diptych": True,
    "save_every": 99,
    "seed": 7,
    "cpu_threads": 4,
    "init": "gaussian",
    "optimizer.name": "adamw8bit",
    "schedule.name": "cosine",
    "precision": "float32",
    "gradient_checkpointing": True,
    "allow_distilled": True,
    "losses.velocity.weight": 0.5,
    "losses.velocity.weighting": "sigma2",
    "losses.velocity.sigma_min": 0.1,
    "losses.velocity.sigma_max": 0.9,
    "losses.velocity.face_weight": 2.0,
    "losses.velocity.region": "right_half",
    "losses.output_preservation": {"weight": 0.5},
    "losses.prior_preservation": {"ratio": 0.5},
    "losses.masked_prior": None,
    "losses.slider": {"target": "a", "positive": "b", "negative": "c"},
    "losses.image_slider": {"prompt": "a"},
    "losses.identity": {"model": "x.onnx"},
    "losses.lpips": {"model": "x.pth"},
    "losses.contrastive": {"model": "clip"},
    "ema.decay": 0.9,
    "ema.evaluate": "raw",
    "adapter.kind": "dora",
    "adapter.lokr_factor": 4,
    "adapter.ranks": {"single_all": 4},
    "adapter.alphas": {"single_all": 4.0},
    "adapter.rows": "qkv",
    "adapter.orthogonal": {"concept": 1},
    "adapter.freeze": "single_all",
    "adapter.groups": {"style": "single_all"},
    "adapter_precision": "float32",
    "checkpoint_every": 2,
    "held_out_sigmas": 4,
    "noise_offset": 0.05,
    "flip": 0.5,
    "processes": 1,
    "tensorboard": False,
    "samples": {"prompts": ("a person",)},
    "base_precision": "fp8",
    "offload": ("vae",),
    "compile": True,
    "attention": "math",
    "resolutions_px": (512,),
    "schedule.power": 2.0,
    "schedule.end": 0.5,
    "schedule.stage_at": 0.7,
}
BASES: tuple[dict[str, Any], ...] = (
    {},
    {"masked_loss": {"kind": "head", "unmasked_weight": 0.5}, "sigma": {"distribution": "shifted", "shift": 2.0}},
    {"sigma": {"distribution": "uniform"}, "schedule": {"name": "cosine", "warmup_steps": 10}},
)
ALL = sorted(EXPORTERS)


def test_the_property_test_covers_every_setting() -> None:
    assert set(SETTINGS_TO_CHANGE) == set(PLAIN) == set(DEFAULTS)


@pytest.mark.parametrize("trainer", ALL)
def test_every_setting_has_a_declared_place(trainer: str) -> None:
    declared = exporter_of(trainer).TRAINER.settings
    assert set(DEFAULTS) - NATIVE <= set(declared) <= set(DEFAULTS)
    for name, setting in declared.items():
        assert sum(map(bool, (setting.keys, setting.files, setting.missing))) == 1, name


def test_a_setting_that_no_declaration_names_is_warned_of_when_it_is_changed() -> None:
    settings = {name: setting for name, setting in SIMPLETUNER.settings.items() if name != "max_grad_norm"}
    trainer = type(SIMPLETUNER)("Other", settings, 4)
    assert "training.max_grad_norm = 3.0: Other has no such setting" in trainer.warnings(
        TrainingSettings(max_grad_norm=3.0), 0
    )
    assert not any("max_grad_norm" in line for line in trainer.warnings(TrainingSettings(), 0))


@pytest.mark.parametrize("trainer", ALL)
def test_every_declared_key_is_written(tmp_path: Path, trainer: str) -> None:
    """Keys that only some settings need are looked for in an export that has them."""
    project, pairs = Project(tmp_path / "photos").write_photos(), Project(tmp_path / "pairs").write_pairs()
    changes = [
        (project, {}),
        (project, MASKED | {"optimizer": {"name": "adamw8bit"}}),
        (project, {"targets": "single_all", "gradient_checkpointing": True, "schedule": {"warmup_steps": 9}}),
        (project, {"sigma": {"distribution": "shifted", "shift": 2.0}}),
        (pairs, {}),
    ]
    written: set[str] = set()
    for owner, training in changes:
        folder, _ = owner.export(trainer=trainer, training=training)
        written |= {name for path in (folder / "config").iterdir() for name in keys_of(config_of(path))}
    assert {name for setting in exporter_of(trainer).TRAINER.settings.values() for name in setting.keys} <= written


def changed(base: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    first, _, rest = name.partition(".")
    if name == "buckets.diptych":
        # Only the target's half may be learned.
        base = changed(base, "losses.velocity.region", "right_half")
    return base | {first: changed(base.get(first, {}), rest, value) if rest else value}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("optimizer.name", {"optimizer": {"name": "adafactor"}}),
        ("optimizer.name", {"optimizer": {"name": "schedulefree"}}),
        ("optimizer.name", {"optimizer": {"name": "adamw_kahan"}, "adapter_precision": "bfloat16"}),
        ("schedule.name", {"schedule": {"name": "two_stage", "end": 0.5}}),
        ("schedule.name", {"schedule": {"name": "polynomial"}}),
    ],
)
def test_what_only_the_native_trainer_has_gives_way_with_a_warning(name: str, values: dict[str, Any]) -> None:
    training, warnings = on_common_ground(TrainingSettings.model_validate(values), 10)
    assert len(warnings) == 1 and warnings[0].startswith(f"training.{name} = ")
    assert (training.optimizer.name, training.schedule.name) == ("adamw", "constant")
    automatic, none = on_common_ground(TrainingSettings(steps="auto"), 31)
    assert automatic.steps == 930 and none == []


@pytest.mark.parametrize("trainer", ALL)
@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(choice=st.data())
def test_changing_any_one_setting_changes_the_export_or_is_warned_of(
    photo: Project, trainer: str, choice: st.DataObject
) -> None:
    base = choice.draw(st.sampled_from(BASES))
    name = choice.draw(st.sampled_from(sorted(SETTINGS_TO_CHANGE)))
    check_change(photo, trainer, base, name, choice.draw(SETTINGS_TO_CHANGE[name]))


@pytest.mark.parametrize("trainer", ALL)
def test_each_setting_by_itself(photo: Project, trainer: str) -> None:
    """One plain change of each setting, so that none is missed by chance."""
    for name, value in PLAIN.items():
        check_change(photo, trainer, {}, name, value)


@pytest.mark.parametrize("trainer", ALL)
def test_settings_of_references_in_a_dataset_that_has_some(pairs: Project, trainer: str) -> None:
    for value in (512, 1024, 640):
        check_change(pairs, trainer, {"buckets": {"resolution_px": 512}}, "buckets.reference_resolution_px", value)


def check_change(project: Project, trainer: str, base: dict[str, Any], name: str, value: Any) -> None:
    """Change one setting: the export differs, or a warning before or after names the setting."""
    if value == "prodigy":
        # It learns at rates of its own size alone, and other optimizers may have those.
        base = base | {"learning_rate": 1.0}
    after_settings = TrainingSettings.model_validate(changed(base, name, value))
    if same_training(TrainingSettings.model_validate(base), after_settings):
        return
    before, known = project.export(trainer=trainer, training=base)
    files = content_of(before)
    try:
        after, warnings = project.export(trainer=trainer, training=changed(base, name, value))
    except UserError as error:
        assert name.rpartition(".")[2] in str(error)
        return
    warned = any(line.startswith(f"training.{name} = ") for line in [*known, *warnings])
    assert files != content_of(after) or warned, (name, value, warnings)
    assert (after / WARNINGS_NAME).read_text(encoding="utf-8").splitlines() == warnings


def same_training(one: TrainingSettings, other: TrainingSettings) -> bool:
    """Whether two settings mean the same to an export.

    Alpha is the rank, and references are capped at 1024, where neither is given; which mask weighs the loss is in the manifest.
    """
    meanings = []
    for training in (one, other):
        buckets = training.buckets.model_copy(
            update={"reference_resolution_px": training.buckets.reference_resolution_px or 1024}
        )
        masked = training.masked_loss.model_copy(update={"kind": training.masked_loss.kind and "any"})
        changes = {"alpha": training.resolved_alpha, "buckets": buckets, "masked_loss": masked}
        meanings.append(training.model_copy(update=changes))
    return meanings[0] == meanings[1]


def content_of(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in files_below(folder).items() if name not in (WARNINGS_NAME, "files.json")}


def test_a_setting_that_is_lost_in_silence_is_noticed(photo: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    lossy = {**SIMPLETUNER.settings, "sigma.bias": in_files("nowhere")}
    monkeypatch.setattr(SimpleTuner, "TRAINER", type(SIMPLETUNER)("SimpleTuner", lossy, 4))
    with pytest.raises(AssertionError, match=r"sigma\.bias"):
        check_change(photo, "simpletuner", {}, "sigma.bias", 0.5)


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        (missing("cannot"), 1.0, ["cannot"]),
        (missing("cannot", implied=1.0), 1.0, []),
        (missing("cannot", implied=1.0), 2.0, ["cannot"]),
        (missing("cannot", unless=lambda training: training.rank == 32), 2.0, []),
        (key("k").but(lambda training: training.rank == 32, "rounds"), 2.0, ["rounds"]),
        (key("k").but(lambda training: training.rank == 31, "rounds"), 2.0, []),
    ],
)
def test_when_a_declaration_warns(setting: Setting, value: float, expected: list[str]) -> None:
    assert setting.warnings("x", value, TrainingSettings()) == [f"training.x = {value}: {text}" for text in expected]
