"""Which variants share a table of encoded samples, and that one more variant touches no other's."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from likeness.config.load import Loaded, load_project
from likeness.workflow import Plan

CONFIG = """\
subjects:
  robin:
    recipe: character
    trigger: r0bin
    class_word: person
    photos: [{{path: data/robin}}]
    captions: {{backend: facts}}
    regularisation: {regularisation}
    phases: {{main: {{}}, fine: {{top: 3}}}}
    variants: {variants}
"""
PLAIN = {"main": "{}", "wide": "{training: {rank: 8, losses: {masked_prior: {}}}}"}
OF_THEIR_OWN = {
    "big": "{training: {buckets: {resolution_px: 768}}}",
    "other": "{training: {buckets: {max_aspect: 1.5}}}",
    "both": "{training: {resolutions_px: [512]}}",
    "flipped": "{training: {flip: 0.5}}",
    "preserved": "{training: {losses: {output_preservation: {}}}}",
    "slid": "{training: {losses: {slider: {target: a, positive: b, negative: c}}}}",
    "likened": "{training: {losses: {identity: {model: arcface.onnx}}}}",
    "faced": "{training: {losses: {velocity: {face_weight: 2}}}}",
    "watched": "{training: {held_out_sigmas: 2}}",
    "regular": "{training: {losses: {prior_preservation: {}}}}",
}


class Decided:
    """Stands for Snakemake's checkpoints: the decision is made."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(get=lambda: SimpleNamespace(output=self.plan.decision_outputs("robin")))


def plan_of(folder: Path, **variants: str) -> Plan:
    text = ", ".join(f"{name}: {value}" for name, value in variants.items())
    regularisation = "{drawn: 2}" if "regular" in variants else "{}"
    (folder / "config").mkdir(exist_ok=True)
    config = CONFIG.format(variants=f"{{{text}}}", regularisation=regularisation)
    (folder / "config" / "config.yaml").write_text(config)
    plan = Plan(Loaded(load_project(folder).project, ()))
    plan.checkpoints = Decided(plan)
    return plan


def tables(plan: Plan, phase: str = "main") -> dict[str, str]:
    subject = plan.subjects["robin"]
    names = [name for name in subject.native_variants if phase in subject.phases_of(name)]
    return {name: plan.encoded(SimpleNamespace(subject="robin", variant=name, phase=phase)) for name in names}


def read_by(plan: Plan, variant: str) -> list[Any]:
    """Params and inputs of an encoding job, as far as settings decide them."""
    one = SimpleNamespace(subject="robin", variant=variant, phase="main")
    asked = (plan.encode_samples, plan.holdout_to_encode, plan.faces_to_learn, plan.regularisation_to_encode)
    return [ask(one) for ask in asked]


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_variants_that_read_the_same_share_the_first_ones_table(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, **PLAIN, late="{phases: [fine]}", later="{phases: [fine], training: {flip: 0.5}}")
    assert set(tables(plan).values()) == {"results/robin/encoded/main/main.parquet"}
    assert tables(plan, "fine") == {
        **dict.fromkeys(("main", "wide", "late"), "results/robin/encoded/main/fine.parquet"),
        "later": "results/robin/encoded/later/fine.parquet",
    }


@pytest.mark.parametrize("name", OF_THEIR_OWN)
def test_a_variant_that_reads_something_else_is_encoded_alone(name: str, tmp_path: Path) -> None:
    before = plan_of(tmp_path, **PLAIN)
    shared, read = tables(before), read_by(before, "main")
    after = plan_of(tmp_path, **PLAIN, **{name: OF_THEIR_OWN[name], "twin": OF_THEIR_OWN[name]})
    own = f"results/robin/encoded/{name}/main.parquet"
    assert tables(after) == {**shared, name: own, "twin": own}
    assert read_by(after, "main") == read
    assert read_by(after, name) != read
    assert read_by(after, name) == read_by(after, "twin")
