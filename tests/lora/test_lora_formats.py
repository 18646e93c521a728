"""Other trainers' layouts: against diffusers' own loader where that can read them, else against the plain form."""

from __future__ import annotations

import json
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tests.lora.conftest import RANK

from likeness.errors import UserError
from likeness.klein.family import Layout
from likeness.lora.adapter import Lora, LoraModule, lora_of
from likeness.lora.comfyui import comfyui_tensors
from likeness.lora.files import read_lora, verify_lora
from likeness.lora.formats import parse_lora
from likeness.lora.names import names_of, own_names, underscored_names

TOLERANCE = 1e-6
TINY = Layout("custom", 2, 3, 64, 96, latent_channels=16, timestep_channels=32)


def deltas(lora: Lora) -> dict[str, torch.Tensor]:
    return {name: module.delta() for name, module in lora.modules.items()}


def assert_same(found: Lora, expected: Lora) -> None:
    ours, theirs = deltas(found), deltas(expected)
    assert ours.keys() == theirs.keys()
    for name, delta in ours.items():
        assert torch.allclose(delta, theirs[name], atol=TOLERANCE), name


def kohya(lora: Lora, layout, alpha: float) -> dict[str, torch.Tensor]:
    tensors = {}
    for key, tensor in comfyui_tensors(lora, layout).items():
        name, side = key.removeprefix("diffusion_model.").split(".lora_")
        stem = "lora_unet_" + name.replace(".", "_")
        tensors[f"{stem}.lora_{'down' if side[0] == 'A' else 'up'}.weight"] = tensor
        tensors[f"{stem}.alpha"] = torch.tensor(alpha)
    return tensors


@pytest.fixture(scope="module")
def plain(state_dict):
    return lora_of(state_dict, 1.0)


def save(tmp_path, tensors, metadata=None):
    path = tmp_path / "file.safetensors"
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, path, metadata=metadata)
    return path


PLAIN_LAYOUTS = {
    "diffusers": "transformer.{name}.lora_{side}.weight",
    "diffusers names under diffusion_model": "diffusion_model.{name}.lora_{side}.weight",
    "peft": "base_model.model.{name}.lora_{side}.weight",
    "bare": "{name}.lora_{side}.default.weight",
    "diffusers, down and up": "transformer.{name}.lora_{word}.weight",
}
LOADED_BY_DIFFUSERS = {"diffusers", "diffusers names under diffusion_model", "peft"}


@pytest.mark.parametrize("title", PLAIN_LAYOUTS)
def test_separate_layouts_are_read_with_scale_1(title, state_dict, plain, adapted, tmp_path):
    tensors = {}
    for key, tensor in state_dict.items():
        name, side = key.removesuffix(".weight").split(".lora_")
        tensors[PLAIN_LAYOUTS[title].format(name=name, side=side, word={"A": "down", "B": "up"}[side])] = tensor
    path = save(tmp_path, tensors)
    assert_same(read_lora(path), plain)
    if title in LOADED_BY_DIFFUSERS:
        assert verify_lora(path, adapted[0], 30).scale == 1.0
    else:
        with pytest.raises(UserError, match="diffusers"):
            verify_lora(path, adapted[0], 30)


def test_fused_file_is_split_exactly(plain, layout, adapted, tmp_path):
    tensors = comfyui_tensors(plain, layout)
    path = save(tmp_path, tensors)
    found = read_lora(path)
    assert found.format == "comfyui"
    assert_same(found, plain)
    assert {module.rank for module in found.modules.values()} == {RANK}
    assert verify_fused_by_diffusers(path, adapted)


def verify_fused_by_diffusers(path, adapted) -> bool:
    """Diffusers repeats A and keeps rank 3r: the same changes, so compare those."""
    from likeness.lora.files import loaded_modules, loaded_skeleton

    theirs = loaded_modules(loaded_skeleton(path, adapted[0]))
    ours = read_lora(path).modules
    return set(ours) == set(theirs) and all(
        torch.allclose(ours[name].delta(), theirs[name].delta(), atol=TOLERANCE) for name in ours
    )


def test_fused_file_that_was_trained_fused_shares_a(layout, tmp_path):
    generator = torch.Generator().manual_seed(0)
    down_RI, up_OR = torch.randn(6, 64, generator=generator), torch.randn(192, 6, generator=generator)
    stem = "diffusion_model.double_blocks.0.txt_attn.qkv"
    path = save(
        tmp_path, {f"{stem}.lora_A.weight": down_RI, f"{stem}.lora_B.weight": up_OR, f"{stem}.alpha": torch.tensor(3.0)}
    )
    found = read_lora(path)
    names = [f"transformer_blocks.0.attn.add_{c}_proj" for c in "qkv"]
    assert set(found.modules) == set(names)
    stacked = torch.cat([found.modules[name].delta() for name in names])
    assert torch.allclose(stacked, 0.5 * up_OR @ down_RI, atol=1e-5)
    assert all(torch.equal(found.modules[name].A_RI, down_RI) and found.modules[name].scale == 0.5 for name in names)


@pytest.mark.parametrize("alpha", [1.0, 4.0, 16.0])
def test_kohya_with_alpha_equals_diffusers(alpha, plain, layout, adapted, tmp_path):
    path = save(tmp_path, kohya(plain, layout, alpha))
    found = read_lora(path)
    assert found.format == "kohya" and len(found.modules) == 30
    assert found.modules["transformer_blocks.0.attn.to_out.0"].scale == alpha / RANK
    assert found.modules["transformer_blocks.0.attn.to_q"].scale == alpha / (3 * RANK)
    verify_lora(path, adapted[0], 30)


def test_metadata_wins_where_there_is_no_alpha_and_must_not_contradict_it(state_dict, plain, tmp_path):
    tensors = {f"transformer.{key}": tensor for key, tensor in state_dict.items()}
    name = "single_transformer_blocks.1.attn.to_out"
    config = {
        "transformer.r": RANK,
        "transformer.lora_alpha": 2,
        "transformer.alpha_pattern": {"single_transformer_blocks.1.attn.to_out": 8},
    }
    metadata = {"lora_adapter_metadata": json.dumps(config)}
    found = read_lora(save(tmp_path, tensors, metadata))
    assert found.modules[name].scale == 2.0 and found.modules["transformer_blocks.1.attn.to_q"].scale == 0.5
    consistent = {**tensors, f"transformer.{name}.alpha": torch.tensor(8.0)}
    assert read_lora(save(tmp_path, consistent, metadata)).modules[name].scale == 2.0
    contradicting = {**tensors, f"transformer.{name}.alpha": torch.tensor(4.0)}
    with pytest.raises(UserError, match="is 2 by the metadata and 1 by its alpha"):
        read_lora(save(tmp_path, contradicting, metadata))
    config["transformer.use_rslora"] = True
    rank_stabilised = read_lora(save(tmp_path, tensors, {"lora_adapter_metadata": json.dumps(config)}))
    assert rank_stabilised.modules["transformer_blocks.1.attn.to_q"].scale == 1.0
    with pytest.raises(UserError, match="not a JSON object"):
        read_lora(save(tmp_path, tensors, {"lora_adapter_metadata": "[1]"}))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"lora_alpha": "x"}, "lora_alpha is 'x', no number"),
        ({"lora_alpha": True}, "lora_alpha is True, no number"),
        ({"lora_alpha": 2, "alpha_pattern": [1]}, r"alpha_pattern is \[1\], no mapping"),
        ({"lora_alpha": 2, "alpha_pattern": {"(": 2}}, r"alpha_pattern '\(' is no regular expression"),
        (
            {"lora_alpha": 2, "alpha_pattern": {"to_q": None, "to_k": [3]}},
            r"'to_q' is None.*'to_k' is \[3\], no number",
        ),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan, no number"),
    ],
)
def test_a_config_of_wrong_types_is_one_error(config, message, plain, layout, tmp_path):
    tensors = {f"transformer.{name}.lora_A.weight": module.A_RI for name, module in plain.modules.items()}
    tensors |= {f"transformer.{name}.lora_B.weight": module.B_OR for name, module in plain.modules.items()}
    metadata = {"lora_adapter_metadata": json.dumps({f"transformer.{key}": value for key, value in config.items()})}
    with pytest.raises(UserError, match=message):
        read_lora(save(tmp_path, tensors, metadata))


def test_peft_folder_with_its_config(adapted, tmp_path):
    """Oracle: PEFT writes the folder itself."""
    from peft import LoraConfig, get_peft_model
    from tests.tiny import tiny_transformer

    model = get_peft_model(
        tiny_transformer(seed=1), LoraConfig(r=RANK, lora_alpha=6, target_modules=adapted[1], init_lora_weights=False)
    )
    model.save_pretrained(str(tmp_path / "peft"))
    found = read_lora(tmp_path / "peft")
    assert found.format == "peft" and len(found.modules) == 30
    layer = model.base_model.model.transformer_blocks[1].attn.to_k
    assert torch.allclose(
        found.modules["transformer_blocks.1.attn.to_k"].delta(), layer.get_delta_weight("default"), atol=1e-6
    )
    (tmp_path / "peft" / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match=r"adapter_config\.json is not valid JSON"):
        read_lora(tmp_path / "peft")
    (tmp_path / "peft" / "adapter_config.json").write_text("[1]")
    with pytest.raises(UserError, match="is not a JSON object"):
        read_lora(tmp_path / "peft")


def test_peft_with_the_original_names_and_alpha_in_bfloat16(plain, layout):
    """fal's files and raw PEFT ones hold the original code's names; alpha may come in any type."""
    tensors = {}
    for key, tensor in comfyui_tensors(plain, layout).items():
        tensors[key.replace("diffusion_model.", "base_model.model.")] = tensor
    found = parse_lora(tensors, {}, "file")
    assert found.format == "peft"
    assert_same(found, plain)
    alphas = {key.replace("lora_A.weight", "alpha"): torch.tensor(8.0).bfloat16() for key in tensors if "lora_A" in key}
    scaled = parse_lora({**tensors, **alphas}, {}, "file")
    assert scaled.modules["single_transformer_blocks.0.attn.to_out"].scale == 8 / RANK
    assert scaled.modules["transformer_blocks.0.attn.to_q"].scale == 8 / (3 * RANK)


PAIR = {f"transformer.x_embedder.lora_{side}.weight": torch.ones(2, 2) for side in "AB"}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "holds no tensors"),
        ({**PAIR, "diffusion_model.txt_in.lora_A.weight": torch.ones(2, 2)}, "mixes two formats"),
        ({**PAIR, "transformer.x_embedder.lora_magnitude_vector": torch.ones(2)}, "is a DoRA"),
        ({"lora_unet_img_in.dora_scale": torch.ones(2)}, "is a DoRA"),
        ({"diffusion_model.img_in.lokr_w1": torch.ones(2, 2)}, "has only w1"),
        ({**PAIR, "transformer.x_embedder.lokr_w1": torch.ones(2, 2)}, "has only A and B and w1"),
        ({"diffusion_model.img_in.lokr_t2": torch.ones(2)}, "is a LoKr of a convolution"),
        (
            {f"diffusion_model.img_in.lokr_{s}": torch.ones(2, 3) for s in ("w1_a", "w1_b", "w2")},
            "no matrices that fit",
        ),
        ({f"diffusion_model.img_in.lokr_{s}": torch.ones(30, 30) for s in ("w1", "w2")}, "LoKr of rank 900 as a LoRA"),
        (
            {
                f"diffusion_model.{name}.lora_{s}.weight": torch.ones(3, 3)
                for s in "AB"
                for name in ("double_blocks.0.img_attn.qkv", "transformer_blocks.0.attn.to_q")
            },
            "mixes two formats.*are one module",
        ),
        ({"diffusion_model.img_in.hada_w1_a": torch.ones(2)}, "is a LoHa"),
        ({**PAIR, "transformer.x_embedder.lora_A.weight": torch.full((2, 2), torch.nan)}, "NaN or infinite"),
        ({**PAIR, "transformer.x_embedder.lora_B.weight": torch.full((2, 2), torch.inf)}, "NaN or infinite"),
        ({"transformer.x_embedder.lora_A.weight": torch.ones(2, 2)}, "has only A"),
        ({**PAIR, "transformer.proj_out.alpha": torch.ones(())}, "has only alpha"),
        ({**PAIR, "transformer.x_embedder.lora_A.weight": torch.ones(3, 2)}, r"shapes \(3, 2\) and \(2, 2\)"),
        ({**PAIR, "transformer.x_embedder.lora_A.weight": torch.ones(2, 2, dtype=torch.int8)}, "int8"),
        ({**PAIR, "transformer.x_embedder.alpha": torch.ones(2)}, r"shape \(2,\); an alpha is one number"),
        ({**PAIR, "transformer.x_embedder.alpha": torch.tensor(torch.nan)}, "NaN or infinite"),
        ({"transformer.x_embedder.weight": torch.ones(2, 2)}, "not a LoRA weight"),
        ({"unet.mid_block.proj_out.lora_A.weight": torch.ones(2, 2)}, "another model family"),
        ({"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": torch.ones(2, 2)}, "module of FLUX.1"),
        ({"transformer.single_transformer_blocks.0.proj_mlp.lora_A.weight": torch.ones(2, 2)}, "module of FLUX.1"),
        ({"lora_unet_double_blocks_0_img_mod_lin.lora_down.weight": torch.ones(2, 2)}, "another model family"),
        ({"lora_unet_input_blocks_1_0.lora_down.weight": torch.ones(2, 2)}, "another model family"),
        ({"text_encoder.layers.0.q_proj.lora_A.weight": torch.ones(2, 2)}, "text encoder"),
        ({f"diffusion_model.final_layer.adaLN_modulation.1.lora_{s}.weight": torch.ones(2, 2) for s in "AB"}, "halves"),
        (
            {f"diffusion_model.double_blocks.0.img_attn.qkv.lora_{s}.weight": torch.ones(2, 2) for s in "AB"},
            "split into three",
        ),
    ],
)
def test_what_cannot_be_read_is_named(tensors, message):
    with pytest.raises(UserError, match=message) as error:
        parse_lora(tensors, {}, "LoRA file some.safetensors")
    assert "some.safetensors" in str(error.value)


@pytest.mark.parametrize("kind", [torch.int64, torch.int32, torch.uint8])
def test_an_alpha_may_be_a_whole_number(kind):
    """kohya's networks register it as torch.tensor(alpha), int64 where the setting is one."""
    module = parse_lora({**PAIR, "transformer.x_embedder.alpha": torch.tensor(6, dtype=kind)}, {}, "file").modules
    assert module["x_embedder"].scale == 3.0


def test_the_double_blocks_other_name_is_the_loaders(adapted, tmp_path):
    """Oracle: diffusers' loader, which takes the alias where it converts names."""
    generator = torch.Generator().manual_seed(0)
    stem, size = "diffusion_model.sformer_blocks.1.attn.to_k", (64, 4)
    tensors = {f"{stem}.lora_A.weight": torch.randn(*size[::-1], generator=generator)}
    path = save(tmp_path, {**tensors, f"{stem}.lora_B.weight": torch.randn(*size, generator=generator)})
    assert list(read_lora(path).modules) == ["transformer_blocks.1.attn.to_k"]
    assert verify_lora(path, adapted[0], 1).modules == 1


@pytest.mark.parametrize(
    ("prefix", "name"),
    [
        ("model.diffusion_model.", "double_blocks.0.img_attn.qkv"),
        ("transformer.model.", "single_transformer_blocks.3.attn.to_out"),
        ("lora_other_", "double_blocks_0_img_attn_qkv"),
        ("net_", "single_transformer_blocks_3_attn_to_out"),
    ],
)
def test_an_unknown_prefix_is_called_so_and_not_another_family(prefix, name):
    tensors = {f"{prefix}{name}.lora_{side}.weight": torch.ones(3, 3) for side in "AB"}
    with pytest.raises(
        UserError, match=f"the unknown prefix {re.escape(repr(prefix))}; the name behind it is FLUX.2's"
    ):
        parse_lora(tensors, {}, "file")


def test_factors_of_two_types_are_read_in_one_that_holds_both():
    """A value of 1e5 is beyond float16, whichever factor is stored so."""
    halves = {key: tensor.half() for key, tensor in PAIR.items()}
    for key in PAIR:
        module = parse_lora({**halves, key: torch.full((2, 2), 1e5)}, {}, "file").modules["x_embedder"]
        assert {factor.dtype for factor in module[:2]} == {torch.float32}
        assert torch.equal(module.delta(), torch.full((2, 2), 2e5))
    mixed = {**halves, next(iter(PAIR)): torch.ones(2, 2).bfloat16()}
    assert parse_lora(mixed, {}, "file").modules["x_embedder"].file_type == torch.float32


def test_the_pair_of_those_tests_is_itself_readable():
    assert list(parse_lora(PAIR, {}, "file").modules) == ["x_embedder"]


def test_files_that_are_not_safetensors(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_lora(tmp_path / "absent.safetensors")
    path = tmp_path / "broken.safetensors"
    for content, why in ((b"", "it is empty"), (b"\x80\x02pickle", "but a pickle"), (b"\xff" * 100, "may be torn")):
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"broken\.safetensors is not a readable safetensors file.*{why}"):
            read_lora(path)


def test_truncated_file_is_refused(tmp_path):
    path = save(tmp_path, PAIR)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        read_lora(path)


def test_every_original_name_is_known_with_dots_and_with_underscores(layout):
    for original, own in names_of(layout).items():
        assert own_names(original) == own
        assert underscored_names()[original.replace(".", "_")] == original
    assert own_names("double_blocks.0.img_attn") is None


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**31))
def test_fusing_and_splitting_projections_of_any_ranks_keeps_their_changes(rank_q, rank_k, rank_v, seed):
    generator = torch.Generator().manual_seed(seed)
    ranks = {"to_q": rank_q, "to_k": rank_k, "to_v": rank_v}
    modules = {
        f"transformer_blocks.0.attn.{name}": LoraModule(
            torch.randn(rank, 64, generator=generator), torch.randn(64, rank, generator=generator), 1 / (1 + rank)
        )
        for name, rank in ranks.items()
    }
    own = Lora(modules)
    fused = comfyui_tensors(own, TINY)
    back = parse_lora(fused, {}, "file")
    for name, delta in deltas(own).items():
        assert torch.allclose(back.modules[name].delta(), delta, atol=1e-4), name
