"""Targets read off an ablation's table, and the two steps of ConsisLoRA: a group kept frozen beside a fresh one."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from tests.tiny import tiny_transformer

from likeness.config.subject import Subject
from likeness.config.training import TrainingSettings
from likeness.errors import UserError
from likeness.klein.family import layout_of
from likeness.lora.files import read_lora
from likeness.tables import write_table
from likeness.tables_surgery import ABLATION
from likeness.training.shape import shape_adapter
from likeness.training.targets import with_targets
from likeness.training.train import find_start, train_lora, training_key

LAYOUT = layout_of(tiny_transformer().config)
GROUPS = {"content": "all_blocks@single=0", "style": "all_blocks@single=1-2"}


@pytest.fixture
def table(tmp_path):
    """A knock-out of five blocks: single.1 and double.0 matter, by rank and clear of chance."""
    p_holm = {"single.1": 0.001, "double.0": 0.01, "single.0": 0.4, "single.2": 0.9, "double.1": 1.0}
    rows = [
        {
            "subject": "s",
            "ablation": "blocks",
            "mode": "knock-out",
            "metric": "image_change",
            "block": block,
            "rank": rank,
        }
        | {
            "weight": 0.0,
            "modules": 2,
            "p_holm": p,
            "value": 1 / rank,
            "effect": 1 / rank,
            "reference": 0.0,
            "difference": 1 / rank,
            "n": 4,
        }
        | {
            "parent": "main",
            "lora_sha256": "0",
            "base_model": "b",
            "norm_share": 0.2,
            "p": p,
            "low": None,
            "high": None,
        }
        for rank, (block, p) in enumerate(p_holm.items(), start=1)
    ]
    write_table(tmp_path / "blocks.parquet", ABLATION, rows)
    return tmp_path / "blocks.parquet"


def settings_of(**values) -> TrainingSettings:
    return TrainingSettings.model_validate({"targets_from": {"ablation": "blocks"}, **values})


def test_the_blocks_that_stand_out_become_the_targets(table):
    found = with_targets(settings_of(), table)
    assert found.targets == "all_blocks@double=0;single=1" and found.targets_from is None
    assert with_targets(settings_of(targets="single_all", targets_from={"table": "x", "most": 1}), table).targets == (
        "single_all@single=1"
    )
    blocks = {".".join(name.split(".")[:2]) for name in shape_adapter(found, LAYOUT)}
    assert blocks == {"transformer_blocks.0", "single_transformer_blocks.1"}


def test_the_training_is_the_one_of_targets_written_by_hand(table):
    by_hand = TrainingSettings(targets="all_blocks@double=0;single=1")
    assert training_key([], with_targets(settings_of(), table), "b", None) == training_key([], by_hand, "b", None)


def test_a_table_that_does_not_say_is_refused(table):
    with pytest.raises(UserError, match=r"targets_from: .*no knock-out of 'csim'"):
        with_targets(settings_of(targets_from={"ablation": "blocks", "metric": "csim"}), table)
    with pytest.raises(UserError, match="must be a preset"):
        with_targets(settings_of(targets=r"transformer_blocks\.0\..*"), table)
    with pytest.raises(ValidationError, match="either ablation or table"):
        settings_of(targets_from={})


def subject_of(**values) -> Subject:
    return Subject.model_validate({"trigger": "t0k", "photos": "data"} | values)


ABLATED = {"ablation": {"blocks": {"of": {"variant": "main"}}}}
FROM = {"targets_from": {"ablation": "blocks"}}


def test_an_ablation_must_not_wait_for_the_training_that_reads_it():
    fine = subject_of(**ABLATED, variants={"main": {}, "few": {"training": FROM}})
    assert fine.training_of("few", "main").targets_from is not None
    with pytest.raises(ValidationError, match="may wait for variant 'main'"):
        subject_of(**ABLATED, variants={"main": {"training": FROM}})
    with pytest.raises(ValidationError, match="there is none"):
        subject_of(variants={"main": {}, "few": {"training": FROM}})


def test_a_phase_changes_the_training_and_must_start_from_a_group_that_is_saved():
    phases = {
        "both": {},
        "style": {"init": "previous:content", "training": {"losses": {"velocity": {"weighting": "sigma2"}}}},
    }
    subject = subject_of(phases=phases, training={"adapter": {"groups": GROUPS}})
    assert subject.training_of("main", "both").losses.velocity.weighting == "none"
    assert subject.training_of("main", "style").losses.velocity.weighting == "sigma2"
    with pytest.raises(ValidationError, match="saves no group 'content'"):
        subject_of(phases=phases)


def test_the_second_step_keeps_the_content_and_starts_the_style_anew(photo_world):
    """Content is byte for byte that of the first step's own file; style is what a fresh adapter of this seed becomes."""
    world = photo_world
    world.encode()
    targets = {"targets": "all_blocks@single=0-2", "adapter": {"groups": GROUPS}}
    first = world.train_stage(steps=2, **targets)
    train_lora(first, world.manifest, world.encoded, None, world.store, world.root / "first")
    frozen = {**targets, "adapter": {"groups": GROUPS, "freeze": GROUPS["content"]}}
    second = world.train_stage(
        "previous:content", steps=2, losses={"velocity": {"weighting": "sigma2"}}, noise_offset=0.03, **frozen
    )
    previous = world.root / "first" / "steps.json"
    train_lora(second, world.manifest, world.encoded, previous, world.store, world.root / "second")
    (before,), (after,) = (json.loads((world.root / name / "steps.json").read_text()) for name in ("first", "second"))
    of_content = {entry["weights"]: entry["file"] for entry in before["others"]}
    content = read_lora(world.root / "first" / of_content["content"]).modules
    found = read_lora(world.root / "second" / after["file"]).modules
    assert set(content) < set(found)
    for name, module in content.items():
        assert torch.equal(found[name].A_RI, module.A_RI) and torch.equal(found[name].B_OR, module.B_OR)
    whole = read_lora(world.root / "first" / before["file"]).modules
    style = sorted(set(found) - set(content))
    assert style and all(not torch.equal(found[name].B_OR, whole[name].B_OR) for name in style)
    with pytest.raises(UserError, match="no group 'colour'"):
        find_start("previous:colour", previous, SimpleNamespace(restore=None))  # pyright: ignore[reportArgumentType]
