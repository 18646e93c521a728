"""What is said of files of every kind: klein's by size, other families', and what is wrong with them."""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import save_file
from tests.lora.conftest import dense, random_module

from likeness.errors import UserError
from likeness.klein.family import KLEIN_4B, KLEIN_9B, layout_of, linear_shapes, transformer_config
from likeness.lora.adapter import Lora
from likeness.lora.comfyui import comfyui_tensors
from likeness.lora.families import FLUX2_DEV, family_by_shapes, foreign_family
from likeness.lora.files import loaded_modules, loaded_skeleton, read_lora, save_lora
from likeness.lora.inspect import inspect_lora


def lora_for(layout, chosen, rank=2, scale=0.5):
    """A LoRA of random factors on the modules of a layout whose names match one of the given expressions."""
    names = [name for name in linear_shapes(layout) if any(re.search(part, name) for part in chosen)]
    shapes = linear_shapes(layout)
    return Lora({name: random_module(rank, *shapes[name], scale, seed) for seed, name in enumerate(sorted(names))})


@pytest.mark.parametrize(
    ("layout", "fits", "expected"), [(KLEIN_4B, True, 100), (KLEIN_9B, True, 144), (FLUX2_DEV, False, 192)]
)
def test_family_ranks_and_share_of_norm(layout, fits, expected, tmp_path):
    lora = lora_for(layout, [r"^transformer_blocks\.3\.attn\.to_", r"\.12\.attn\.to_out$", "x_embedder"])
    assert save_lora(tmp_path / "x.safetensors", lora, {})
    found = inspect_lora(tmp_path / "x.safetensors")
    assert (found.family, found.fits_klein, found.expected) == (layout.name, fits, expected)
    assert bool(found.reason) != fits and found.format == "diffusers" and found.types == ["F32"]
    assert (
        found.modules == len(lora.modules)
        and found.matched == len(lora.modules) - 1
        and found.ranks == {2: len(lora.modules)}
    )
    blocks = {block.block: block for block in found.blocks}
    assert next(iter(blocks)) == "transformer_blocks.3" and list(blocks)[-1] == "outside the blocks"
    assert sum(block.energy_share for block in found.blocks) == pytest.approx(1)
    embedder = blocks["outside the blocks"]
    assert embedder.norm == pytest.approx(float(dense(lora.modules["x_embedder"]).norm()), rel=1e-5)
    assert (embedder.alpha_low, embedder.alpha_high, embedder.rank_low) == (1.0, 1.0, 2)
    (warning,) = found.warnings
    assert f"{expected - found.matched} modules of the blocks are not adapted" in warning


@pytest.mark.parametrize("layout", [KLEIN_4B, KLEIN_9B])
def test_config_of_a_layout_is_read_back(layout):
    assert layout_of(transformer_config(layout)) == layout


FLUX1_KEYS = [
    "transformer.single_transformer_blocks.3.proj_mlp.lora_A.weight",
    "transformer.transformer_blocks.3.norm1.linear.lora_A.weight",
    "transformer.transformer_blocks.3.ff.net.0.proj.lora_A.weight",
    "transformer.single_transformer_blocks.3.attn.to_q.lora_A.weight",
    "lora_unet_double_blocks_0_img_mod_lin.lora_down.weight",
    "diffusion_model.single_blocks.7.modulation.lin.lora_A.weight",
]


@pytest.mark.parametrize("key", FLUX1_KEYS)
def test_flux1_is_named_by_its_keys_and_told_why_it_cannot_fit(key, tmp_path):
    save_file(
        {key: torch.ones(16, 3072), key.replace("lora_A", "lora_B").replace("down", "up"): torch.ones(3072, 16)},
        tmp_path / "x",
    )
    found = inspect_lora(tmp_path / "x")
    assert found.family == "flux1" and not found.fits_klein and found.ranks == {16: 1}
    assert "3072 against 4096" in found.reason and "klein 4B, though 3072 wide too" in found.reason


def test_flux1_is_told_by_shapes_where_all_its_names_are_klein_names():
    width = 3072
    blocks = {f"transformer_blocks.{index}.attn.to_q": (width, width) for index in range(19)}
    assert family_by_shapes(blocks)[0] == "flux1"
    assert family_by_shapes({"single_transformer_blocks.2.attn.to_qkv_mlp_proj": (7 * width, width)})[0] == "flux1"
    assert family_by_shapes({"transformer_blocks.2.ff.linear_in": (4 * width, width)})[0] == "flux1"
    assert family_by_shapes({"transformer_blocks.2.ff.linear_in": (6 * width, width)}) == ("klein-4b", "")
    family, reason = family_by_shapes({"transformer_blocks.0.attn.to_q": (64, 64)})
    assert family is None and "klein-9b: 'transformer_blocks.0.attn.to_q' is (64, 64)" in reason


@pytest.mark.parametrize(
    ("key", "family"),
    [
        ("transformer.transformer_blocks.0.img_mlp.net.0.proj.lora_A.weight", "qwen-image"),
        ("transformer.transformer_blocks.0.img_mod.1.lora_A.weight", "qwen-image"),
        ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_down.weight", "sdxl"),
        ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", "sd1"),
        ("diffusion_model.joint_blocks.0.x_block.attn.qkv.lora_A.weight", "sd3"),
        ("diffusion_model.blocks.0.self_attn.q.lora_A.weight", "wan"),
        ("diffusion_model.layers.0.attention.to_q.lora_A.weight", "z-image"),
        ("text_model.encoder.weight", None),
    ],
)
def test_other_families_by_their_keys(key, family):
    found = foreign_family([key])
    assert (found[0] if found else None) == family


def test_warnings_name_what_a_loader_would_do_silently(tmp_path):
    lora = lora_for(KLEIN_4B, [r"^transformer_blocks\.0\.attn\.to_q$"])
    path = tmp_path / "x.safetensors"
    name, module = next(iter(lora.modules.items()))
    pair = {f"{name}.lora_A.weight": module.A_RI, f"{name}.lora_B.weight": module.B_OR}
    save_file({key.replace("weight", "default.weight"): tensor for key, tensor in pair.items()}, path)
    found = inspect_lora(path)
    assert found.format == "bare" and any(
        "diffusers loads no module of a file without prefix" in w for w in found.warnings
    )
    assert any("neither metadata nor alpha tell the scale" in w for w in found.warnings)
    alpha = {f"diffusion_model.{name}.alpha": torch.tensor(300.0, dtype=torch.bfloat16)}
    save_file({**{f"diffusion_model.{key}": tensor for key, tensor in pair.items()}, **alpha}, path)
    warnings = inspect_lora(path).warnings
    assert any("alpha is stored as bfloat16" in w for w in warnings) and any(
        "refuses this layout with alpha" in w for w in warnings
    )
    other = "transformer_blocks.1.attn.to_q"
    mixed = Lora({name: module, other: random_module(5, 3072, 3072)._replace(B_OR=torch.zeros(3072, 5))})
    save_lora(path, mixed, {})
    warnings = inspect_lora(path).warnings
    assert any("1 of 2 modules change nothing" in w for w in warnings) and any("ranks differ" in w for w in warnings)


def test_comfyui_file_is_recognised(tmp_path):
    tensors = comfyui_tensors(lora_for(KLEIN_9B, [r"^transformer_blocks\.0\.attn\.to_q$"]), KLEIN_9B)
    save_file(tensors, tmp_path / "x.safetensors")
    found = inspect_lora(tmp_path / "x.safetensors")
    assert (found.format, found.family) == ("comfyui", "klein-9b")


def test_lokr_is_called_so(tmp_path):
    stem = "diffusion_model.double_blocks.0.img_attn.proj"
    save_file({f"{stem}.lokr_w1": torch.ones(64, 64), f"{stem}.lokr_w2": torch.eye(64)}, tmp_path / "x.safetensors")
    found = inspect_lora(tmp_path / "x.safetensors")
    assert (found.algorithm, found.family, found.modules) == ("LoKr", "klein-9b", 1)
    # The norm is the product of both: 64 · 8.
    assert found.ranks == {64 * 64: 1} and found.blocks[0].norm == pytest.approx(512, rel=1e-5)


def test_a_lokr_of_full_rank_is_measured_whole(tmp_path):
    generator = torch.Generator().manual_seed(0)
    first_9x8, second_OI = (torch.randn(9, 8, generator=generator), torch.randn(1024, 384, generator=generator))
    fused = "diffusion_model.double_blocks.0.txt_attn.qkv"
    small = "diffusion_model.double_blocks.1.img_attn.proj"
    tensors = {f"{fused}.lokr_w1": first_9x8, f"{fused}.lokr_w2": second_OI, f"{fused}.alpha": torch.tensor(1.0)}
    pair = torch.randn(768, 2, generator=generator), torch.randn(2, 768, generator=generator)
    tensors |= {f"{small}.lokr_w1": torch.eye(4), f"{small}.lokr_w2_a": pair[0], f"{small}.lokr_w2_b": pair[1]}
    save_file(tensors | {f"{small}.alpha": torch.tensor(1.0)}, tmp_path / "x.safetensors")
    found = inspect_lora(tmp_path / "x.safetensors")
    assert (found.family, found.modules, found.ranks) == ("klein-4b", 4, {8: 1, 8 * 384: 3})
    whole = torch.kron(first_9x8.double(), second_OI.double())
    norms = [float(whole.norm()), 0.5 * float(torch.kron(torch.eye(4).double(), (pair[0] @ pair[1]).double()).norm())]
    assert [block.norm for block in found.blocks] == pytest.approx(norms, rel=1e-5)
    assert found.blocks[0].energy_share == pytest.approx(norms[0] ** 2 / (norms[0] ** 2 + norms[1] ** 2), rel=1e-5)


@pytest.mark.parametrize("last, family", [(59, "qwen-image"), (18, "flux1"), (4, "klein-4b")])
def test_attention_alone_is_told_by_the_number_of_its_blocks(last, family, tmp_path):
    tensors = {
        f"transformer.transformer_blocks.{block}.attn.{module}.lora_{side}.weight": torch.ones(shape)
        for block in range(last + 1)
        for module in ("to_q", "to_k", "to_v", "to_out.0")
        for side, shape in (("A", (1, 3072)), ("B", (3072, 1)))
    }
    save_file(tensors, tmp_path / "x.safetensors")
    found = inspect_lora(tmp_path / "x.safetensors")
    assert (found.family, found.fits_klein) == (family, family == "klein-4b")
    assert family == "klein-4b" or {"qwen-image": "Qwen-Image", "flux1": "FLUX.1"}[family] in found.reason


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"x.lora_A.weight": torch.ones(2, 2)}, "another model family"),
        ({"transformer.x_embedder.lora_magnitude_vector": torch.ones(2)}, "is a DoRA"),
        ({f"transformer.x_embedder.lora_{s}.weight": torch.full((2, 2), torch.nan) for s in "AB"}, "NaN or infinite"),
    ],
)
def test_what_is_no_lora_is_one_error(tensors, message, tmp_path):
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=message):
        inspect_lora(tmp_path / "x.safetensors")


LAYOUT_KEYS = {
    "diffusers": "transformer.transformer_blocks.0.attn.to_add_out",
    "original names": "diffusion_model.double_blocks.0.txt_attn.proj",
    "original names, fused": "diffusion_model.double_blocks.0.txt_attn.qkv",
    "diffusers' names under diffusion_model": "diffusion_model.transformer_blocks.0.attn.to_add_out",
    "an export's alias": "diffusion_model.sformer_blocks.0.attn.to_add_out",
    "peft": "base_model.model.transformer_blocks.0.attn.to_add_out",
    "peft, original names": "base_model.model.double_blocks.0.txt_attn.proj",
    "kohya": "lora_unet_double_blocks_0_txt_attn_proj",
    "kohya, diffusers' names": "lora_unet_transformer_blocks_0_attn_to_add_out",
    "kohya, other prefix": "lora_transformer_double_blocks_0_txt_attn_proj",
    "diffusers, down and up": "transformer.transformer_blocks.0.attn.to_add_out",
    "original names, down and up": "diffusion_model.double_blocks.0.txt_attn.proj",
    "lycoris": "lycoris_transformer_blocks_0_attn_to_add_out",
    "lycoris, original names": "lycoris_double_blocks_0_txt_attn_proj",
    "bare": "transformer_blocks.0.attn.to_add_out",
}


def loads(path) -> bool:
    """Oracle: whether diffusers' own loader puts the file on a module."""
    try:
        return bool(loaded_modules(loaded_skeleton(path, KLEIN_4B)))
    except UserError:
        return False


@pytest.mark.parametrize("title", LAYOUT_KEYS)
@pytest.mark.parametrize("algorithm", ["LoRA", "LoKr"])
@pytest.mark.parametrize("alpha", [True, False])
def test_a_layout_is_said_to_be_refused_exactly_where_diffusers_refuses_it(title, algorithm, alpha, tmp_path):
    stem, path = LAYOUT_KEYS[title], tmp_path / "x.safetensors"
    outputs = 3 * 3072 if "fused" in title else 3072
    words = ("down", "up") if stem.startswith("lora_") or "down" in title else ("A", "B")
    if algorithm == "LoRA":
        sides = (f"lora_{words[0]}.weight", f"lora_{words[1]}.weight")
        tensors = {sides[0]: torch.randn(2, 3072), sides[1]: torch.randn(outputs, 2)}
    else:
        tensors = {"lokr_w1": torch.randn(4, 4), "lokr_w2_a": torch.randn(outputs // 4, 2)}
        tensors["lokr_w2_b"] = torch.randn(2, 768)
    tensors |= {"alpha": torch.tensor(2.0)} if alpha else {}
    save_file({f"{stem}.{side}": tensor for side, tensor in tensors.items()}, path)
    found = inspect_lora(path)
    assert (found.algorithm, found.family, found.modules) == (algorithm, "klein-4b", 3 if "fused" in title else 1)
    said = [warning for warning in found.warnings if "convert it" in warning]
    assert (len(said) == 0) == loads(path), said


def test_a_file_of_peft_without_its_config_has_an_untold_scale(tmp_path):
    path, stem = tmp_path / "adapter_model.safetensors", "base_model.model.transformer_blocks.0.attn.to_q"
    save_file(
        {f"{stem}.lora_{side}.weight": torch.ones(3072, 3072)[:2] for side in "A"}
        | {f"{stem}.lora_B.weight": torch.ones(3072, 2)},
        path,
    )
    assert any("no adapter_config.json lies beside the file" in warning for warning in inspect_lora(path).warnings)
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 4, "r": 2}')
    for given in (path, tmp_path):
        found = inspect_lora(given)
        assert not any("adapter_config" in warning for warning in found.warnings) and found.blocks[0].alpha_low == 4


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_floats_of_one_byte_are_read_exactly_and_it_is_said(dtype, tmp_path):
    lora = lora_for(KLEIN_4B, [r"^transformer_blocks\.0\.attn\.to_q$"])
    ((name, module),) = lora.modules.items()
    factors = [factor.to(dtype) for factor in module[:2]]
    keys = [f"diffusion_model.{name}.{side}" for side in ("lora_A.weight", "lora_B.weight", "alpha")]
    save_file(dict(zip(keys, [*factors, torch.tensor(2.0).to(dtype)], strict=True)), tmp_path / "x.safetensors")
    (read,) = read_lora(tmp_path / "x.safetensors").modules.values()
    assert read.scale == 1.0 and all(
        ours.dtype == torch.bfloat16 and torch.equal(ours.double(), theirs.double())
        for ours, theirs in zip(read[:2], factors, strict=True)
    )
    found = inspect_lora(tmp_path / "x.safetensors")
    assert found.types == [{"e4m3fn": "F8_E4M3", "e5m2": "F8_E5M2"}[str(dtype).rpartition("float8_")[2]]]
    for text in ("stored in 8 bits", "holds whole numbers only up to"):
        assert any(text in warning for warning in found.warnings)


def test_a_folder_that_diffusers_saved_is_read(tmp_path):
    lora = lora_for(KLEIN_4B, [r"^transformer_blocks\.0\.attn\.to_q$"])
    with pytest.raises(UserError, match=r"no adapter_model\.safetensors and no pytorch_lora_weights\.safetensors"):
        inspect_lora(tmp_path)
    save_lora(tmp_path / "pytorch_lora_weights.safetensors", lora, {})
    assert inspect_lora(tmp_path).modules == 1
