"""What is trained of the adapter: ranks by block, rows, frozen parts, shared bases, and groups that are saved apart."""

from __future__ import annotations

import json
import math

import pytest
import torch
from pydantic import ValidationError
from tests.tiny import tiny_transformer
from tests.training.test_training_loop import made_data, made_sample, made_training, run_steps

from likeness.config.training import TrainingSettings
from likeness.errors import UserError
from likeness.klein.family import KLEIN_4B, KLEIN_9B, layout_of
from likeness.lora.files import read_lora
from likeness.training.adapter import add_adapter, orthogonal_rows, without_adapter
from likeness.training.shape import group_modules, predict_file_bytes, shape_adapter
from likeness.training.train import train_lora, training_key

LAYOUT = layout_of(tiny_transformer().config)
FUSED = "single_transformer_blocks.0.attn.to_qkv_mlp_proj"


def settings_of(**values) -> TrainingSettings:
    return TrainingSettings.model_validate({"rank": 4, "precision": "float32", **values})


def test_rank_and_alpha_by_block_are_pefts():
    settings = settings_of(
        alpha=2,
        adapter={"ranks": {"single_all@single=1": 2, "single_all": 8}, "alphas": {"double_attn_img@double=0": 12}},
    )
    transformer = tiny_transformer()
    weights = add_adapter(transformer, settings, LAYOUT)
    expected = {
        "single_transformer_blocks.1.attn.to_out": (2, 0.5),
        "single_transformer_blocks.0.attn.to_out": (8, 0.5),
        "transformer_blocks.0.attn.to_q": (4, 3.0),
        "transformer_blocks.1.attn.to_q": (4, 0.5),
    }
    modules = dict(transformer.named_modules())
    for name, (rank, scale) in expected.items():
        assert weights[f"{name}.lora_A.weight"].shape[0] == rank
        assert modules[name].scaling["default"] == scale
        assert shape_adapter(settings, LAYOUT)[name].scale == scale


@pytest.mark.parametrize(
    "adapter", [{"ranks": {"double_all": 2}}, {"freeze": "double_all"}, {"alphas": {"x_embedder": 1}}]
)
def test_a_choice_that_fits_no_target_is_refused(adapter):
    settings = settings_of(targets="single_all", adapter=adapter)
    with pytest.raises(UserError, match=r"training\.adapter\.\w+.*matches none"):
        add_adapter(tiny_transformer(), settings, LAYOUT)


def test_file_sizes_of_the_real_models_are_known_beforehand():
    """Rank 32 on all blocks, bfloat16: 87.0 and 48.2 million values, as counted on the meta device."""
    settings = TrainingSettings(rank=32)
    assert predict_file_bytes(settings, KLEIN_9B) / 2 == pytest.approx(87.0e6, rel=1e-3)
    assert predict_file_bytes(settings, KLEIN_4B) / 2 == pytest.approx(48.2e6, rel=1e-3)


def test_only_query_key_and_value_rows_are_trained():
    training = made_training(made_data([made_sample(0)]), adapter={"rows": "qkv"}, optimizer={"weight_decay": 0.1})
    run_steps(training, 3)
    up_OR = training.weights[f"{FUSED}.lora_B.weight"].detach()
    assert up_OR[3 * LAYOUT.width :].abs().max() == 0
    assert up_OR[: 3 * LAYOUT.width].abs().min() > 0
    assert training.weights["single_transformer_blocks.0.attn.to_out.lora_B.weight"].abs().min() > 0


def test_bases_of_two_concepts_do_not_meet():
    first, second = orthogonal_rows(0, 16, 512), orthogonal_rows(1, 16, 512)
    assert (first @ second.T).abs().max() < 1e-6
    assert torch.allclose(first @ first.T, torch.eye(16), atol=1e-6)
    assert torch.equal(orthogonal_rows(1, 16, 512), second)
    assert (orthogonal_rows(0, 16, 512) @ orthogonal_rows(0, 16, 512).T).diagonal().mean().item() == pytest.approx(1)
    with pytest.raises(UserError, match="4 concepts of rank"):
        orthogonal_rows(4, 16, 64)


def test_bases_of_two_ranks_share_rows_so_that_several_ranks_are_refused():
    shared = orthogonal_rows(0, 32, 512) @ orthogonal_rows(1, 16, 512).T
    assert (shared.abs() > 0.99).sum() == 16, "rows 16 to 31 belong to both"
    orthogonal = {"adapter": {"orthogonal": {"concept": 1}}}
    assert TrainingSettings.model_validate(orthogonal).adapter.orthogonal
    orthogonal["adapter"]["ranks"] = {"single_all": 4}
    with pytest.raises(ValidationError, match=r"ranks: single_all would have another rank, .* Remove ranks"):
        TrainingSettings.model_validate(orthogonal)


def test_two_orthogonal_loras_add_up_without_crosstalk():
    """(ΔW₁ + ΔW₂)·x = ΔW₁·x for x in the span of the first basis: nothing of the second LoRA answers."""
    changes = []
    for concept in (0, 1):
        training = made_training(made_data([made_sample(concept)]), adapter={"orthogonal": {"concept": concept}})
        before = {name: weight.detach().clone() for name, weight in training.weights.items() if "lora_A" in name}
        run_steps(training, 3)
        assert all(torch.equal(before[name], training.weights[name]) for name in before)
        name = "transformer_blocks.0.attn.to_q"
        changes.append(training.weights[f"{name}.lora_B.weight"] @ training.weights[f"{name}.lora_A.weight"])
    inside = orthogonal_rows(0, 4, LAYOUT.width).T
    assert changes[1].abs().max() > 1e-4
    assert torch.allclose((changes[0] + changes[1]) @ inside, changes[0] @ inside, atol=1e-6)


def test_the_bare_model_speaks_without_the_adapter_and_training_goes_on():
    training = run_steps(made_training(made_data([made_sample(0)]), adapter={"orthogonal": {"concept": 0}}), 2)
    flags = [weight.requires_grad for weight in training.weights.values()]
    seen_base = tiny_transformer(seed=1)
    (sample,) = training.data.samples.values()
    batch = training.data.batch([sample.sample_id], [False])
    from likeness.training.losses.objective import predict

    sigma = torch.tensor([0.4])
    with torch.no_grad():
        plain = predict(seen_base, batch, batch.latents_BLC, sigma)
        with without_adapter(training.transformer):
            assert torch.allclose(predict(training.transformer, batch, batch.latents_BLC, sigma), plain, atol=1e-6)
        assert not torch.allclose(predict(training.transformer, batch, batch.latents_BLC, sigma), plain, atol=1e-4)
    assert [weight.requires_grad for weight in training.weights.values()] == flags


GROUPS = {"content": "all_blocks@single=0", "style": "all_blocks@single=1-2"}


def train(world, out, **changes):
    stage = world.train_stage(**changes)
    return train_lora(stage, world.manifest, world.encoded, None, world.store, world.root / out)


def test_groups_are_trained_together_and_saved_apart(photo_world):
    world = photo_world
    world.encode()
    train(world, "out", steps=2, adapter={"groups": GROUPS, "ranks": {"single_all@single=2": 3}})
    (entry,) = json.loads((world.root / "out/steps.json").read_text())
    assert [one["weights"] for one in entry["others"]] == ["content", "style"]
    whole = read_lora(world.root / "out" / entry["file"]).modules
    parts = [read_lora(world.root / "out" / one["file"]).modules for one in entry["others"]]
    assert not set(parts[0]) & set(parts[1])
    for part in parts:
        for name, module in part.items():
            assert torch.equal(module.B_OR, whole[name].B_OR) and module.scale == whole[name].scale
    singles = {name for name in whole if name.startswith("single")}
    assert set(parts[0]) | set(parts[1]) == singles
    ranks = {name: module.rank for name, module in whole.items()}
    assert {ranks[f"single_transformer_blocks.{index}.attn.to_out"] for index in (0, 1)} == {2}
    assert ranks["single_transformer_blocks.2.attn.to_out"] == 3


def test_files_of_groups_are_of_the_weights_that_are_evaluated_whichever_were_asked_for_before(photo_world):
    world = photo_world
    world.encode()
    for evaluate in ("raw", "ema"):
        train(world, evaluate, steps=2, adapter={"groups": GROUPS}, ema={"decay": 0.9, "evaluate": evaluate})
        (entry,) = json.loads((world.root / evaluate / "steps.json").read_text())
        whole = read_lora(world.root / evaluate / entry["file"]).modules
        for group in GROUPS:
            part = read_lora(world.root / evaluate / f"step-000002-{group}.safetensors").modules
            assert part and all(torch.equal(one.B_OR, whole[name].B_OR) for name, one in part.items()), (
                evaluate,
                group,
            )


def test_which_weights_are_evaluated_names_a_training_only_where_groups_are_made_of_them():
    def key(evaluate, decay=0.9, **adapter):
        values = {"ema": {"decay": decay, "evaluate": evaluate}, "adapter": adapter}
        return training_key([], TrainingSettings.model_validate(values), "base", None)[:16]

    assert key("raw") == key("ema") == "d838081ec065e791"
    assert key("ema", decay=0) == "d3748255c0aac972", "without an average there is nothing to choose from"
    assert key("raw", groups=GROUPS) != key("ema", groups=GROUPS)


def test_a_frozen_content_keeps_its_bytes_while_a_style_is_trained_beside_it(photo_world):
    """ConsisLoRA's second step: the content of a first training is frozen, and a fresh style learns σ²-weighted."""
    world = photo_world
    world.encode()
    train(world, "first", steps=2, adapter={"groups": GROUPS}, targets="single_all", alpha=1)
    content = world.root / "first/step-000002-content.safetensors"
    second = {"freeze": GROUPS["content"]}
    losses = {"velocity": {"weighting": "sigma2"}}
    train(world, "second", init=str(content), steps=2, adapter=second, targets="single_all", losses=losses)
    before, after = read_lora(content).folded().modules, read_lora(world.root / "second/step-000002.safetensors")
    assert len(after.modules) == 6 and len(before) == 2
    for name, module in before.items():
        assert torch.equal(after.modules[name].A_RI, module.A_RI)
        assert torch.equal(after.folded().modules[name].B_OR, module.B_OR)
    assert after.modules["single_transformer_blocks.1.attn.to_out"].B_OR.abs().max() > 0
    with pytest.raises(UserError, match="other modules"):
        train(world, "third", init=str(content), steps=2, targets="single_all")
    with pytest.raises(UserError, match="covers all targets"):
        train(world, "third", steps=2, adapter={"freeze": "single_all"}, targets="single_all")


def test_overlapping_groups_are_refused():
    with pytest.raises(UserError, match="'one' and 'two' both hold"):
        group_modules(settings_of(adapter={"groups": {"one": "single_all", "two": "all_blocks@single=1"}}), LAYOUT)


def test_a_start_that_changes_the_mlp_is_refused_for_restricted_rows(photo_world):
    photo_world.encode()
    train(photo_world, "first", steps=2)
    start = str(photo_world.root / "first/step-000002.safetensors")
    with pytest.raises(UserError, match=r"changes rows of the MLP"):
        train(photo_world, "second", init=start, steps=2, adapter={"rows": "qkv"})


def test_the_start_says_what_is_trained_and_how_large_the_files_are(photo_world, capsys):
    photo_world.encode()
    train(photo_world, "out", steps=2, targets="double_attn_img+x_embedder")
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("training:"))
    layout = layout_of(tiny_transformer().config)
    settings = photo_world.train_stage(targets="double_attn_img+x_embedder").training
    predicted = predict_file_bytes(settings, layout)
    assert f"9 modules, {predicted // 4:,} values, files of {predicted / 1e6:.1f} MB" in line
    path = photo_world.root / "out/step-000002.safetensors"
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    assert path.stat().st_size == header + predicted
    assert math.isclose(predicted, 4 * 2 * (8 * 2 * 64 + 64 + 16))
