"""Written files through diffusers' own loader, and in both formats: same modules, same scale, same velocity."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import pytest
import torch
from diffusers import Flux2KleinPipeline
from diffusers.loaders.single_file_utils import convert_flux2_transformer_checkpoint_to_diffusers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.lora.conftest import ALPHA, RANK, adapted_transformer
from tests.tiny import tiny_transformer

from likeness.errors import UserError
from likeness.klein import ids
from likeness.klein.family import KLEIN_4B, KLEIN_9B, linear_shapes
from likeness.klein.targets import file_bytes
from likeness.klein.velocity import predict_velocity
from likeness.lora.adapter import Lora, LoraModule, check_fits, family_of, relative_difference
from likeness.lora.comfyui import check_comfyui, comfyui_keys, comfyui_tensors, write_comfyui
from likeness.lora.files import (
    loaded_modules,
    loaded_skeleton,
    read_lora,
    save_lora,
    sha256_of,
    verify_lora,
    write_lora,
)
from likeness.lora.names import names_of


@pytest.fixture(scope="module")
def written(state_dict, adapted, tmp_path_factory):
    path = tmp_path_factory.mktemp("lora") / "own.safetensors"
    write_lora(path, state_dict, RANK, ALPHA, adapted[1], {"manifest": "abc", "likeness": "1"})
    return path


@torch.no_grad()
def velocity(transformer):
    generator = torch.Generator().manual_seed(0)
    noisy_BLC, embeddings_BTD = torch.randn(2, 6, 16, generator=generator), torch.randn(2, 5, 96, generator=generator)
    return predict_velocity(
        transformer, noisy_BLC, torch.tensor([0.2, 0.9]), embeddings_BTD, ids.target_ids(2, 3), ids.text_ids(5)
    )


def velocity_of_file(path):
    """What a stranger gets: the file through diffusers' loader into the bare model."""
    transformer = tiny_transformer(seed=1)
    Flux2KleinPipeline(None, None, None, None, transformer).load_lora_weights(str(path))
    return velocity(transformer)


def test_both_formats_give_the_velocity_of_the_trained_adapter(adapted, written, layout, tmp_path):
    trained, bare = velocity(adapted[0]), velocity(tiny_transformer(seed=1))
    assert (trained - bare).abs().max() > 0.05
    assert torch.allclose(velocity_of_file(written), trained, atol=1e-5)
    comfyui = tmp_path / "own.comfyui.safetensors"
    write_comfyui(comfyui, read_lora(written), layout, {})
    assert torch.allclose(velocity_of_file(comfyui), trained, atol=1e-5)
    assert torch.allclose(velocity_of_file(comfyui), velocity_of_file(written), atol=1e-5)


def test_without_the_metadata_the_scale_would_be_lost(adapted, written, tmp_path):
    stripped = tmp_path / "stripped.safetensors"
    save_file(load_file(written), stripped)
    assert not torch.allclose(velocity_of_file(stripped), velocity(adapted[0]), atol=1e-3)


def test_verified_count_scale_and_hash(adapted, written):
    verified = verify_lora(written, adapted[0], 30)
    assert verified == (30, ALPHA / RANK, hashlib.sha256(written.read_bytes()).hexdigest())
    assert sha256_of(written) == verified.sha256
    with pytest.raises(UserError, match="loads 30 of 31 modules"):
        verify_lora(written, adapted[0], 31)


def test_verify_leaves_the_given_model_alone_and_takes_a_base(adapted, written, tmp_path):
    from tests.tiny import save_tiny

    from likeness.klein.load import BaseModel

    before = velocity(adapted[0])
    verify_lora(written, adapted[0])
    assert list(adapted[0].peft_config) == ["default"] and torch.equal(velocity(adapted[0]), before)
    save_tiny(tmp_path / "base")
    base = BaseModel(str(tmp_path / "base"))
    assert verify_lora(written, base).modules == 30
    assert "transformer" not in vars(base)


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        ((torch.bfloat16, torch.bfloat16), torch.bfloat16),
        ((torch.float16, torch.float16), torch.float16),
        ((torch.bfloat16, torch.float32), torch.float32),
    ],
)
def test_a_file_is_loaded_back_in_its_own_type(adapted, written, tmp_path, types, expected):
    path = tmp_path / "typed.safetensors"
    tensors = {key: tensor.to(types["lora_B" in key]) for key, tensor in load_file(written).items()}
    with safe_open(written, "pt") as file:
        save_file(tensors, path, file.metadata())
    loaded = loaded_modules(loaded_skeleton(path, adapted[0]))
    assert {factor.dtype for module in loaded.values() for factor in (module.A_RI, module.B_OR)} == {expected}
    assert verify_lora(path, adapted[0]).modules == 30


def test_verify_refuses_what_loads_wrongly(adapted, written, tmp_path, layout):
    tensors = load_file(written)
    with safe_open(written, "pt") as file:
        metadata = file.metadata()
    zero, bare, half, other = (tmp_path / f"{name}.safetensors" for name in ("zero", "bare", "half", "other"))
    save_file({key: t * (0 if "lora_B" in key else 1) for key, t in tensors.items()}, zero, metadata=metadata)
    with pytest.raises(UserError, match="changes nothing"):
        verify_lora(zero, adapted[0])
    save_file({key.removeprefix("transformer."): t for key, t in tensors.items()}, bare)
    with pytest.raises(UserError, match="loads 0 of 30 modules"):
        verify_lora(bare, adapted[0])
    alphas = {key.replace("lora_A.weight", "alpha"): torch.tensor(2.0) for key in tensors if "lora_A" in key}
    save_file({**tensors, **alphas}, half)
    with pytest.raises(UserError, match="diffusers cannot load it"):
        verify_lora(half, adapted[0])
    with pytest.raises(UserError, match="diffusers"):
        verify_lora(written, tiny_transformer(num_double=1, num_single=1))
    save_lora(other, Lora({"x_embedder": LoraModule(torch.ones(2, 16), torch.ones(64, 2), 0.3)}), {})
    assert verify_lora(other, adapted[0], 1) == (1, pytest.approx(0.3), sha256_of(other))


def test_scales_and_ranks_that_differ_between_modules_survive(adapted, tmp_path):
    generator = torch.Generator().manual_seed(0)
    shapes = {"transformer_blocks.0.attn.to_q": (4, 2.0), "transformer_blocks.1.attn.to_q": (4, 0.5)}
    shapes |= {"single_transformer_blocks.0.attn.to_out": (2, 1.0), "transformer_blocks.0.attn.to_k": (6, 0.7)}
    sizes = {name: (64, 256 if "single" in name else 64) for name in shapes}
    modules = {
        name: LoraModule(
            torch.randn(rank, sizes[name][1], generator=generator), torch.randn(64, rank, generator=generator), scale
        )
        for name, (rank, scale) in shapes.items()
    }
    path = tmp_path / "mixed.safetensors"
    save_lora(path, Lora(dict(sorted(modules.items()))), {})
    assert verify_lora(path, adapted[0], 4).scale is None
    for name, module in read_lora(path).modules.items():
        assert module.scale == pytest.approx(shapes[name][1], rel=1e-9) and module.rank == shapes[name][0]


def test_reading_back_gives_the_same_lora_and_metadata(written, state_dict):
    lora = read_lora(written)
    assert lora.format == "diffusers" and lora.metadata["manifest"] == "abc"
    assert list(lora.modules) == sorted(lora.modules) and len(lora.modules) == 30
    for name, module in lora.modules.items():
        assert torch.equal(module.A_RI, state_dict[f"{name}.lora_A.weight"])
        assert torch.equal(module.B_OR, state_dict[f"{name}.lora_B.weight"])
        assert module.scale == 2.5
    adapter = json.loads(lora.metadata["lora_adapter_metadata"])
    assert adapter["transformer.r"] == 4 and adapter["transformer.lora_alpha"] == 10


def test_bytes_do_not_depend_on_order_or_process(state_dict, adapted, written, tmp_path):
    again = tmp_path / "again.safetensors"
    shuffled = dict(reversed(list(state_dict.items())))
    write_lora(again, shuffled, RANK, ALPHA, adapted[1], {"likeness": "1", "manifest": "abc"})
    assert again.read_bytes() == written.read_bytes()
    script = (
        "import sys, torch; sys.path.insert(0, 'scripts'); from pathlib import Path\n"
        "from likeness.lora.files import write_tensors\n"
        "print(write_tensors(Path(sys.argv[1]), {'b': torch.arange(6.), 'a': torch.ones(2, 3)}, "
        "{c: c for c in 'zyxwvut'}))"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / f"{i}")],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": str(i), "OMP_NUM_THREADS": "1"},
        ).stdout
        for i in range(2)
    }
    assert len(runs) == 1
    assert load_file(tmp_path / "0")["b"].tolist() == [0, 1, 2, 3, 4, 5]


def test_predicted_file_size(written, adapted, layout):
    header = int.from_bytes(written.read_bytes()[:8], "little") + 8
    assert written.stat().st_size == header + file_bytes(adapted[1], layout, RANK, "float32")


def test_no_leftovers_and_reserved_metadata(state_dict, written, tmp_path):
    assert [path.name for path in written.parent.iterdir()] == ["own.safetensors"]
    with pytest.raises(ValueError, match="not use"):
        write_lora(tmp_path / "x", state_dict, 4, 4, ".*", {"format": "x"})
    with pytest.raises(ValueError, match="not a LoRA weight"):
        write_lora(tmp_path / "x", {"x_embedder.weight": torch.ones(1)}, 4, 4, ".*", {})


@pytest.mark.parametrize("layout", [KLEIN_4B, KLEIN_9B], ids=lambda layout: layout.name)
def test_comfyui_names_are_the_original_codes(layout):
    """Oracle: diffusers' converter of original checkpoints turns exactly these names into the model's modules."""
    shapes = linear_shapes(layout)
    with torch.device("meta"):
        original = {
            f"{name}.weight": torch.empty(sum(shapes[own][0] for own in group), shapes[group[0]][1])
            for name, group in names_of(layout).items()
        }
        converted = convert_flux2_transformer_checkpoint_to_diffusers(original)
    found = {key.removesuffix(".weight"): tuple(tensor.shape) for key, tensor in converted.items()}
    assert found == shapes
    assert comfyui_keys(layout) == ["diffusion_model." + name for name in names_of(layout)]


def test_comfyui_file_of_separate_projections_is_block_diagonal(written, layout, tmp_path):
    tensors = comfyui_tensors(read_lora(written), layout)
    up_OR = tensors["diffusion_model.double_blocks.1.txt_attn.qkv.lora_B.weight"]
    assert up_OR.shape == (192, 12)
    blocks = up_OR.reshape(3, 64, 3, 4)
    assert all(bool(blocks[i, :, j].any()) == (i == j) for i in range(3) for j in range(3))
    assert not any("alpha" in key for key in tensors) and len(tensors) == 2 * (2 * 8 + 3 * 2)


def test_comfyui_round_trip_is_exact(written, layout, tmp_path):
    own, path = read_lora(written), tmp_path / "c.safetensors"
    write_comfyui(path, own, layout, {"a": "b"})
    assert check_comfyui(path, layout) == 22
    back = read_lora(path)
    assert back.format == "comfyui" and back.metadata["a"] == "b" and list(back.modules) == list(own.modules)
    for name, module in own.folded().modules.items():
        assert torch.equal(back.modules[name].A_RI, module.A_RI), name
        assert torch.equal(back.modules[name].B_OR, module.B_OR), name
    again = tmp_path / "d.safetensors"
    write_comfyui(again, back, layout, {"a": "b"})
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    "choice",
    ["double_attn_img", "single_in", r"transformer_blocks\.0\.attn\.(to_k|add_v_proj)", "all_blocks+x_embedder"],
)
def test_comfyui_of_partial_targets_gives_the_same_velocity(choice, layout, tmp_path):
    from peft.utils import get_peft_model_state_dict

    transformer, regex = adapted_transformer(choice)
    own, comfyui = tmp_path / "own.safetensors", tmp_path / "comfyui.safetensors"
    write_lora(own, get_peft_model_state_dict(transformer), RANK, ALPHA, regex, {})
    write_comfyui(comfyui, read_lora(own), layout, {})
    trained = velocity(transformer)
    assert (trained - velocity(tiny_transformer(seed=1))).abs().max() > 1e-3
    assert torch.allclose(velocity_of_file(own), trained, atol=1e-5)
    assert torch.allclose(velocity_of_file(comfyui), trained, atol=1e-5)


def test_shared_a_keeps_its_rank(layout):
    shared = torch.randn(4, 64)
    modules = {f"transformer_blocks.0.attn.to_{c}": LoraModule(shared, torch.randn(64, 4), 1.0) for c in "kqv"}
    tensors = comfyui_tensors(Lora(modules), layout)
    fused = tensors["diffusion_model.double_blocks.0.img_attn.qkv.lora_B.weight"]
    assert torch.equal(fused, torch.cat([modules[f"transformer_blocks.0.attn.to_{c}"].B_OR for c in "qkv"]))


@pytest.mark.parametrize("shared", [True, False])
def test_projections_of_several_types_fuse_in_one_that_holds_all(shared, layout):
    names = [f"transformer_blocks.0.attn.to_{c}" for c in "qkv"]
    down_RI, size = torch.ones(2, 64), (64, 2)
    modules = {
        name: LoraModule(down_RI * (1 if shared else rank), torch.ones(size), 1.0) for rank, name in enumerate(names, 1)
    }
    modules[names[0]] = modules[names[0]].cast(torch.float16)
    modules[names[1]] = modules[names[1]]._replace(B_OR=torch.full(size, 1e5))
    tensors = comfyui_tensors(Lora(modules), layout)
    stem = "diffusion_model.double_blocks.0.img_attn.qkv.lora_"
    delta_OI = tensors[f"{stem}B.weight"] @ tensors[f"{stem}A.weight"]
    assert torch.equal(delta_OI, torch.cat([modules[name].delta() for name in names]))
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_comfyui_refuses_unknown_keys_alpha_and_the_last_norm(layout, tmp_path):
    path = tmp_path / "x.safetensors"
    good = {f"diffusion_model.img_in.lora_{side}.weight": torch.ones(2, 2) for side in "AB"}
    for extra in (
        "diffusion_model.img_in.alpha",
        "diffusion_model.blocks.0.lora_A.weight",
        "diffusion_model.txt_in.lora_A.weight",
    ):
        save_file({**good, extra: torch.ones(1)}, path)
        with pytest.raises(UserError, match="not a LoRA file that ComfyUI loads"):
            check_comfyui(path, layout)
    save_file(good, path)
    assert check_comfyui(path, layout) == 1
    norm = Lora({"norm_out.linear": LoraModule(torch.ones(1, 64), torch.ones(128, 1), 1.0)})
    with pytest.raises(UserError, match="halves"):
        comfyui_tensors(norm, layout)


def test_relative_difference_equals_that_of_the_built_changes():
    generator = torch.Generator().manual_seed(0)

    def module(rank, scale):
        return LoraModule(torch.randn(rank, 9, generator=generator), torch.randn(7, rank, generator=generator), scale)

    first, second = module(3, 0.5), module(2, 1.5)
    built = (first.delta() - second.delta()).norm() / first.delta().norm()
    assert relative_difference(first, second) == pytest.approx(built.item(), rel=1e-5)
    rescaled = LoraModule(first.A_RI * 4, first.B_OR / 8, 1.0)
    assert relative_difference(first, rescaled) < 1e-7
    assert relative_difference(first, first._replace(scale=0.51)) == pytest.approx(0.02, rel=1e-5)
    zero = first._replace(scale=0.0)
    assert relative_difference(zero, zero) == 0 and relative_difference(zero, first) == float("inf")
    assert relative_difference(first, first._replace(B_OR=torch.ones(6, 3))) == float("inf")


def test_families_are_told_apart(layout, written):
    def lora_for(shapes, name):
        return Lora({name: LoraModule(torch.ones(2, shapes[name][1]), torch.ones(shapes[name][0], 2), 1.0)})

    name = "single_transformer_blocks.21.attn.to_out"
    big = lora_for(linear_shapes(KLEIN_9B), name)
    assert family_of(big) == "klein-9b" and family_of(read_lora(written)) is None
    check_fits(big, KLEIN_9B, "file")
    with pytest.raises(UserError, match=r"no module 'single_transformer_blocks\.21\.attn\.to_out'\. It fits klein-9b"):
        check_fits(big, KLEIN_4B, "file")
    small = lora_for(linear_shapes(KLEIN_4B), "transformer_blocks.0.ff.linear_in")
    with pytest.raises(UserError, match=r"is \(outputs, inputs\) \(18432, 3072\) in the file and \(24576, 4096\)"):
        check_fits(small, KLEIN_9B, "file")
    flux1 = {"single_transformer_blocks.0.attn.to_qkv_mlp_proj": (21504, 3072)}
    with pytest.raises(UserError, match="another model family"):
        check_fits(lora_for(flux1, "single_transformer_blocks.0.attn.to_qkv_mlp_proj"), KLEIN_4B, "file")
