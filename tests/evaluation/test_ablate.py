"""Ablation on the tiny model: known effects, anchored names, reuse. Oracles: the planted block, and plain recomputation."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tests.evaluation.conftest import PROMPTS
from tests.evaluation.test_score import run_checkpoints, workplace_of

from likeness.config.surgery import Ablation
from likeness.errors import UserError
from likeness.evaluation.ablate import Measurements, ablate_lora
from likeness.evaluation.blocks import IMAGE_CHANGE, choose_blocks, chosen_targets, effect_of, split_roles, strongest
from likeness.evaluation.draw import LoraFile, Request
from likeness.evaluation.parents import Candidates, find_parents
from likeness.evaluation.score import Entry, loras_by_hash, score_base
from likeness.evaluation.scores import Checkpoint
from likeness.klein.family import layout_of, linear_shapes
from likeness.klein.targets import matched_names, target_regex
from likeness.lora.adapter import Lora, LoraModule
from likeness.lora.files import read_lora, save_lora
from likeness.store import sha256_of_file
from likeness.tables import read_rows
from likeness.tables_surgery import ABLATION

FEW = ("garden", "street", "office")
BLOCKS = ["double.0", "double.1", "single.0", "single.1", "single.2"]


def write_planted(project, targets, strong="single_transformer_blocks.2.", weak=0.0):
    """A LoRA whose factors are weak everywhere but in one block; returns the file."""
    layout = layout_of(json.loads((project.base / "transformer" / "config.json").read_text()))
    shapes, generator, modules = linear_shapes(layout), torch.Generator().manual_seed(3), {}
    for name in matched_names(target_regex(targets, layout), layout):
        outputs, inputs = shapes[name]
        strength = 1.5 if name.startswith(strong) else weak
        down_RI = torch.randn(2, inputs, generator=generator) / inputs**0.5
        modules[name] = LoraModule(down_RI, torch.randn(outputs, 2, generator=generator) * strength, 1.0)
    path = project.folder / f"{targets.replace('=', '-')}-{weak}.safetensors"
    save_lora(path, Lora(dict(sorted(modules.items()))), {})
    return path


def ablate(project, path, name="trial", **settings):
    ablation = Ablation.model_validate({"of": str(path), **settings})
    workplace = workplace_of(project)
    (parent,) = find_parents([ablation.of], [path], Candidates([], {}), project.choice, workplace.store)
    output = project.results / "ablation" / f"{name}.parquet"
    ablate_lora(workplace, ablation, parent, project.evaluation("base"), "jane", output)
    return read_rows(output, ABLATION), workplace


@pytest.fixture
def scored(project):
    """The tiny project with its base scored on few images."""
    project.stage = project.stage.model_copy(update={"prompts": {key: PROMPTS[key] for key in FEW}})
    score_base(workplace_of(project), project.evaluation("base"))
    return project


def family(rows, mode, weight, metric=IMAGE_CHANGE):
    found = [row for row in rows if (row["mode"], row["weight"], row["metric"]) == (mode, weight, metric)]
    return sorted(found, key=lambda row: row["rank"])


@pytest.mark.parametrize(("targets", "weak"), [("single_all@single=2", 0.0), ("all_blocks", 0.02)])
def test_the_block_that_was_trained_ranks_first_out_and_in(scored, targets, weak):
    rows, _ = ablate(scored, write_planted(scored, targets, weak=weak), weights=(0.0, 0.5, 1.0))
    for mode, weights in (("knock-out", (0.0, 0.5)), ("knock-in", (0.5, 1.0))):
        for weight in weights:
            ranked = family(rows, mode, weight)
            assert {row["block"] for row in ranked} == set(BLOCKS)
            assert ranked[0]["block"] == "single.2", (mode, weight)
            assert ranked[0]["difference"] > 5 * ranked[1]["difference"]
    share = {row["block"]: row["norm_share"] for row in rows}
    assert share["single.2"] > 0.9


def test_weights_one_and_zero_change_nothing_and_cost_nothing(scored):
    rows, workplace = ablate(scored, write_planted(scored, "all_blocks", weak=0.5), weights=(0.0, 1.0))
    assert all(row["difference"] == 0 for row in family(rows, "knock-out", 1.0) + family(rows, "knock-in", 0.0))
    assert all(row["difference"] > 0 for row in family(rows, "knock-out", 0.0) + family(rows, "knock-in", 1.0))
    points = len(workplace.half("select"))
    assert workplace.store.computed["generated-images"] == points * (1 + 2 * len(BLOCKS))


def test_knocking_a_block_out_at_run_time_is_the_file_without_it(scored):
    """Oracle: another file, without the modules of double block 1, scored as a whole LoRA."""
    path = write_planted(scored, "all_blocks", weak=0.4)
    rows, workplace = ablate(scored, path, weights=(0.0,), modes=("knock-out",))
    rest = write_planted(scored, "double_all@double=0", weak=0.4)
    whole = read_lora(path)
    kept = {name: one for name, one in whole.modules.items() if not name.startswith("transformer_blocks.1.")}
    save_lora(rest, Lora(kept), {})
    points, pictures = workplace.half("select"), workplace.pictures
    files = [LoraFile(one, sha256_of_file(one)) for one in (path, rest)]
    found = workplace.drawer.draw([Request(point, file) for point in points for file in files])
    changes = {}
    for point in points:
        ours, theirs = (pictures.raw(found[Request(point, file)]).astype(float) for file in files)
        changes.setdefault(point.prompt_id, []).append(np.abs(ours - theirs).mean() / 255)
    expected = np.mean([np.mean(values) for values in changes.values()])
    row = next(row for row in rows if row["block"] == "double.1" and row["metric"] == IMAGE_CHANGE)
    assert row["difference"] == pytest.approx(expected, abs=2e-4)
    assert row["difference"] > 1e-3


def test_a_second_run_draws_nothing_and_writes_the_same_bytes(scored):
    path = write_planted(scored, "all_blocks", weak=0.1)
    ablate(scored, path, weights=(0.5,))
    output = scored.results / "ablation" / "trial.parquet"
    before = sha256_of_file(output)
    assert (scored.results / "ablation" / "trial.jpg").is_file()
    output.unlink()
    _, workplace = ablate(scored, path, weights=(0.5,))
    assert sha256_of_file(output) == before
    assert not +workplace.store.computed and workplace.models_loaded == 0
    _, finer = ablate(scored, path, weights=(0.5, 1.0))
    assert finer.store.computed["generated-images"] == len(BLOCKS) * len(finer.half("select"))


def test_differences_are_paired_with_the_whole_lora_and_the_base(scored):
    rows, _ = ablate(scored, write_planted(scored, "all_blocks", weak=0.3), weights=(0.0, 1.0))
    csim = [row for row in rows if row["metric"] == "csim"]
    assert {row["mode"] for row in csim} == {"knock-out", "knock-in"}
    for row in csim:
        assert row["difference"] == pytest.approx(row["value"] - row["reference"])
        assert row["low"] <= row["difference"] <= row["high"]
        assert row["p_holm"] is None or row["p_holm"] >= row["p"]
    for mode in ("knock-out", "knock-in"):
        assert len({row["reference"] for row in csim if row["mode"] == mode}) == 1


def test_wrong_prompts_and_foreign_files_are_named(scored, tmp_path):
    path = write_planted(scored, "all_blocks")
    with pytest.raises(UserError, match="'office' is not drawn on the select half"):
        ablate(scored, path, prompts=("office",))
    with pytest.raises(UserError, match="does not exist"):
        ablate(scored, tmp_path / "gone.safetensors")


def test_parents_are_checkpoints_or_the_best_of_them(project):
    run_checkpoints(project)
    scored = project
    store, base = scored.store(), scored.evaluation("base") / "scores.parquet"
    tables = [scored.evaluation("main", "main") / "scores.parquet", base]
    candidates = Candidates(tables, loras_by_hash([scored.steps], [], store))
    ablation = Ablation.model_validate({"of": "best"})
    last = Ablation.model_validate({"of": "main"})
    second = Ablation.model_validate({"of": {"variant": "main", "phase": "main", "step": 500}})
    parents = [ablation.of, last.of, second.of]
    found = find_parents(parents, [scored.steps, scored.steps], candidates, scored.choice, store)
    assert found[0].checkpoint and found[0].checkpoint.variant == "main"
    assert found[1].checkpoint == Checkpoint("main", "main", 750)
    assert found[2].checkpoint == Checkpoint("main", "main", 500)
    assert found[2].lora.sha256 == json.loads(scored.steps.read_text())[1]["sha256"]
    gone = Ablation.model_validate({"of": {"variant": "main", "step": 600}}).of
    with pytest.raises(UserError, match="Allowed: 250, 500, 750"):
        find_parents([gone], [scored.steps], candidates, scored.choice, store)
    with pytest.raises(UserError, match="nothing can be chosen"):
        find_parents([ablation.of], [], Candidates([base], {}), scored.choice, store)


def test_effects_follow_the_metrics_direction():
    assert effect_of("csim", "knock-out", 0.2, 0.8) == pytest.approx(0.6)
    assert effect_of("csim", "knock-in", 0.2, 0.8) == pytest.approx(-0.6)
    assert effect_of("target_error", "knock-out", 0.5, 0.1) == pytest.approx(0.4)
    assert effect_of("head_ratio", "knock-out", 1.4, 0.9) == pytest.approx(0.3)


def test_targets_and_roles_are_taken_from_the_table(scored):
    path = write_planted(scored, "single_all@single=2", weak=0.0)
    rows, _ = ablate(scored, path, weights=(0.0,), modes=("knock-out",))
    assert [row["block"] for row in strongest(rows, IMAGE_CHANGE, "knock-out")] == ["single.2"]
    with pytest.raises(UserError, match="no knock-out of 'image_chang'"):
        strongest(rows, "image_chang", "knock-out")


def fabricated(effects, metric, p_holm=0.01, mode="knock-out"):
    """Knock-out rows with known losses of a metric by block."""
    order = sorted(effects, key=lambda block: -effects[block])
    return [
        {"mode": mode, "metric": metric, "weight": 0.0, "block": block, "modules": 2, "rank": order.index(block) + 1,
         "value": 1 - effects[block], "reference": 1.0, "effect": effects[block], "p_holm": p_holm}
        for block in effects
    ]  # fmt: skip


def test_content_and_style_split_is_a_partition_by_the_larger_part():
    content = {"double.0": 0.0, "single.0": 0.4, "single.1": 0.3, "single.10": 0.0}
    style = {"double.0": 0.0, "single.0": 0.01, "single.1": 0.04, "single.10": 0.05}
    rows = fabricated(content, "csim") + fabricated(style, "style_similarity")
    split = split_roles(rows, "csim", "style_similarity")
    assert split == (["single.0", "single.1"], ["single.10"], ["double.0"])
    assert sorted([*split.content, *split.style, *split.rest]) == sorted(content)
    assert chosen_targets(rows, "csim", 1) == "all_blocks@single=0"
    assert choose_blocks(rows, "csim", 3) == ["single.0", "single.1"]
    with pytest.raises(UserError, match="clear of chance"):
        chosen_targets(fabricated(content, "csim", p_holm=0.4), "csim", 1)


def test_blocks_that_hurt_and_what_is_no_block_are_not_chosen():
    rows = fabricated({"single.7": -0.15, "other": 0.5, "single.0": 0.1, "single.1": 0.02}, "likeness")
    assert choose_blocks(rows, "likeness", 1) == ["single.0"]
    assert choose_blocks(fabricated({"other": 0.5}, "likeness"), "likeness", 8) == []


def test_a_metric_that_was_measured_nowhere_twice_is_left_out():
    found = Measurements.__new__(Measurements)
    one, two = Entry(Checkpoint("a", "", 0), None), Entry(Checkpoint("b", "", 0), None)
    found.means = {
        one: {"head_ratio": {"red": 1.0}, "csim": {"red": 0.5}},
        two: {"head_ratio": {"blue": 1.0}, "csim": {"red": 0.4}},
    }
    found.shots = {one: [], two: []}
    compared = dict(found.compared(one, two))
    assert compared["csim"] == {"red": (0.5, 0.4)} and "head_ratio" not in compared
