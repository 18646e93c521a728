"""DoRA and LoKr: trained by peft, written, loaded back by diffusers, drawn and published as what was trained."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import Flux2KleinPipeline
from pydantic import ValidationError
from safetensors.torch import load_file
from tests.tiny import tiny_transformer
from tests.training.test_training_loop import made_data, made_sample, made_training, run_steps

from likeness.config.base import ModelSource
from likeness.config.evaluation import PublishStage
from likeness.config.training import TrainingSettings
from likeness.errors import UserError
from likeness.evaluation.card import write_card
from likeness.evaluation.draw import LoraFile, adapter_on
from likeness.evaluation.publish import no_comfyui, write_files
from likeness.klein.family import KLEIN_4B, KLEIN_9B, layout_of
from likeness.lora.comfyui import comfyui_tensors
from likeness.lora.dora import MAGNITUDE, Dora, is_dora, read_adapter, read_dora
from likeness.lora.files import read_lora
from likeness.lora.runtime import adapters_on, set_weights
from likeness.store import sha256_of_file
from likeness.training.adapter import add_adapter, without_adapter
from likeness.training.base import open_base
from likeness.training.files import save_weights, starting_weights, verify_weights
from likeness.training.losses.objective import predict
from likeness.training.shape import predict_file_bytes, weight_shapes
from likeness.training.train import train_lora

LAYOUT = layout_of(tiny_transformer().config)
KINDS = ("dora", "lokr")


def settings_of(kind: str, **values) -> TrainingSettings:
    return TrainingSettings.model_validate({"rank": 2, "precision": "float32", "adapter": {"kind": kind}, **values})


def probe(transformer, data):
    """The velocity of a fixed batch."""
    batch = data.batch([sorted(data.samples)[0]], [False])
    with torch.no_grad():
        return predict(transformer, batch, batch.latents_BLC, torch.tensor([0.4]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_starts_without_effect(kind, dtype):
    """Also where the base is bfloat16, whose rounded row lengths would rescale every row."""
    data, plain, adapted = made_data([made_sample(0)]), tiny_transformer(seed=1), tiny_transformer(seed=1)
    plain.to(dtype), adapted.to(dtype)
    add_adapter(adapted, settings_of(kind), LAYOUT)
    plain, adapted = plain.float(), adapted.float()
    assert torch.allclose(probe(adapted, data), probe(plain, data), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_is_trained_and_the_bare_model_stays(kind):
    training = made_training(made_data([made_sample(0)]), adapter={"kind": kind})
    before = {name: weight.detach().clone() for name, weight in training.weights.items()}
    run_steps(training, 3)
    unmoved = [name for name, weight in training.weights.items() if torch.equal(weight, before[name])]
    assert not unmoved
    with without_adapter(training.transformer):
        assert torch.allclose(
            probe(training.transformer, training.data), probe(tiny_transformer(seed=1), training.data), atol=1e-6
        )


def test_a_dora_is_the_published_formula():
    """m · (W + s·B·A) / ‖W + s·B·A‖ by rows, built by hand into a plain model."""
    training = run_steps(made_training(made_data([made_sample(0)]), adapter={"kind": "dora"}, alpha=2), 4)
    by_hand = tiny_transformer(seed=1)
    weights = training.weights
    with torch.no_grad():
        for name, module in by_hand.named_modules():
            if f"{name}.lora_A.weight" in weights:
                adapted = module.weight + 0.5 * weights[f"{name}.lora_B.weight"] @ weights[f"{name}.lora_A.weight"]
                length = weights[f"{name}.lora_magnitude_vector.weight"][:, None]
                module.weight.copy_(length * adapted / adapted.norm(dim=1, keepdim=True))
    assert torch.allclose(probe(training.transformer, training.data), probe(by_hand, training.data), atol=1e-4)


def test_a_lokr_is_the_kronecker_product():
    training = run_steps(made_training(made_data([made_sample(0)]), adapter={"kind": "lokr"}, alpha=2), 4)
    by_hand, weights = tiny_transformer(seed=1), training.weights
    with torch.no_grad():
        for name, module in by_hand.named_modules():
            if f"{name}.lokr_w1" in weights:
                whole = weights.get(f"{name}.lokr_w2")
                second = whole if whole is not None else weights[f"{name}.lokr_w2_a"] @ weights[f"{name}.lokr_w2_b"]
                module.weight += 0.5 * torch.kron(weights[f"{name}.lokr_w1"], second)
    assert torch.allclose(probe(training.transformer, training.data), probe(by_hand, training.data), atol=1e-4)


def trained_file(world, kind, **changes):
    world.encode()
    stage = world.train_stage(steps=3, adapter={"kind": kind}, alpha=4, **changes)
    train_lora(stage, world.manifest, world.encoded, None, world.store, world.root / kind)
    (entry,) = json.loads((world.root / kind / "steps.json").read_text())[-1:]
    return world.root / kind / entry["file"], stage.training


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_loads_back_through_diffusers_and_draws_what_was_trained(photo_world, kind, tiny_folder):
    path, settings = trained_file(photo_world, kind)
    assert is_dora(path) == (kind == "dora")
    pipeline = Flux2KleinPipeline.from_pretrained(tiny_folder)
    data = made_data([made_sample(0)])
    bare = probe(pipeline.transformer, data)
    ours = open_base(ModelSource(source=str(tiny_folder)), offline=True).transformer
    found = read_adapter(path)
    with adapters_on(ours, {"scored": found}, str(path)):
        set_weights(ours, "scored", lambda name: 1.0)
        drawn = probe(ours, data)
    pipeline.load_lora_weights(str(path))
    theirs = probe(pipeline.transformer, data)
    assert torch.allclose(drawn, theirs, atol=1e-5)
    assert (theirs - bare).abs().max() > 1e-3
    weights = add_adapter(ours, settings, LAYOUT)
    with torch.no_grad():
        for name, value in starting_weights(path, settings, LAYOUT).items():
            weights[name].copy_(value)
    assert torch.allclose(probe(ours, data), theirs, atol=1e-5), "the next phase starts from the same adapter"


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_in_the_default_precision_writes_checkpoints_that_arrive(photo_world, kind):
    path, settings = trained_file(photo_world, kind, precision="bfloat16")
    assert settings.precision == TrainingSettings().precision
    base = open_base(ModelSource(source=str(photo_world.base)), offline=True)
    assert verify_weights(path, base, 30, may_change_nothing=False).modules == 30
    assert {tensor.dtype for key, tensor in load_file(path).items() if MAGNITUDE not in key} == {torch.bfloat16}


@pytest.mark.parametrize("kind", ["lora", *KINDS])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_weights_of_the_real_size_arrive_in_either_precision(kind, precision, tmp_path):
    """The widest module of klein 4B's single blocks: its sums are long enough to show a factor that was rounded twice."""
    settings, name = settings_of(kind, precision=precision, rank=8, alpha=8), "single_transformer_blocks.3.attn.to_out"
    generator = torch.Generator().manual_seed(0)
    shapes = {key: size for key, size in weight_shapes(settings, KLEIN_4B).items() if key.startswith(f"{name}.")}
    weights = {key: 0.02 * torch.randn(*size, generator=generator) for key, size in shapes.items()}
    path = tmp_path / "x.safetensors"
    assert save_weights(path, weights, settings, KLEIN_4B, {}, {name}) == 1
    assert verify_weights(path, KLEIN_4B, 1, may_change_nothing=False).modules == 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_of_the_file_is_known_beforehand(photo_world, kind):
    path, settings = trained_file(photo_world, kind)
    header = int.from_bytes(path.read_bytes()[:8], "little")
    assert path.stat().st_size - 8 - header == predict_file_bytes(settings, LAYOUT)


def test_file_sizes_of_the_real_models():
    """A LoKr of rank 32 and factor 8 is about an eighth of a LoRA's size; a DoRA adds one number a row."""
    lora, lokr, dora = (
        predict_file_bytes(TrainingSettings.model_validate({"adapter": {"kind": kind}}), KLEIN_9B)
        for kind in ("lora", "lokr", "dora")
    )
    assert 7 < lora / lokr < 9
    rows = sum(shape[0] for name, shape in weight_shapes(settings_of("dora"), KLEIN_9B).items() if "magnitude" in name)
    assert dora == lora + 4 * rows


def test_a_lokr_is_published_for_comfyui_as_the_lora_that_it_equals(photo_world):
    path, settings = trained_file(photo_world, "lokr")
    lora = read_lora(path)
    tensors = comfyui_tensors(lora, LAYOUT)
    name = "single_blocks.1.linear2"
    up, down = (tensors[f"diffusion_model.{name}.lora_{side}.weight"] for side in "BA")
    parts = starting_weights(path, settings, LAYOUT)
    own = "single_transformer_blocks.1.attn.to_out.lokr_"
    second = parts[f"{own}w2"] if f"{own}w2" in parts else parts[f"{own}w2_a"] @ parts[f"{own}w2_b"]
    assert torch.allclose(up @ down, 2.0 * torch.kron(parts[f"{own}w1"], second), atol=1e-5)


def test_nothing_that_adds_loras_takes_a_dora(photo_world):
    path, _ = trained_file(photo_world, "dora")
    with pytest.raises(UserError, match="DoRA"):
        read_lora(path)
    assert isinstance(read_adapter(path), Dora)
    assert len(read_dora(path).magnitudes) == 30


@pytest.mark.parametrize(("kind", "other"), [("dora", "lora"), ("lora", "dora"), ("lokr", "lora"), ("lora", "lokr")])
def test_a_phase_starts_from_its_own_kind_only(photo_world, kind, other):
    path, _ = trained_file(photo_world, kind)
    with pytest.raises(UserError, match=f"training.adapter.kind is {other}"):
        starting_weights(path, settings_of(other), LAYOUT)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"adapter": {"kind": "dora", "rows": "qkv"}}, "second factor"),
        ({"adapter": {"kind": "lokr", "orthogonal": {"concept": 0}}}, "keep LoRAs apart"),
        ({"adapter": {"kind": "lokr"}, "init": "gaussian"}, "init must be kaiming"),
        ({"adapter": {"kind": "lokr", "lokr_factor": 32}, "rank": 32}, "at most 512"),
    ],
)
def test_what_does_not_fit_the_kind_is_refused(changes, match):
    with pytest.raises(ValidationError, match=match):
        TrainingSettings.model_validate(changes)


def test_a_factor_must_divide_the_targets():
    with pytest.raises(UserError, match="lokr_factor: 7 does not divide transformer_blocks"):
        weight_shapes(settings_of("lokr", adapter={"kind": "lokr", "lokr_factor": 7}), KLEIN_4B)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_publishing_keeps_the_bytes_that_were_scored(photo_world, kind, precision):
    """Of a LoKr a ComfyUI file lies beside it, the LoRA that it equals; of a DoRA there is none, and the card says why."""
    path, _ = trained_file(photo_world, kind, precision=precision)
    stage = PublishStage.model_validate(
        {"recipe": "style", "trigger": "t", "base_model": {"source": str(photo_world.base)}, "training": {}}
        | {"class_word": "person"}
    )
    folder = photo_world.root / "published"
    folder.mkdir()
    assert write_files(folder, "jane", LoraFile(path, sha256_of_file(path)), stage, {}) == 30
    assert (folder / "jane.safetensors").read_bytes() == path.read_bytes()
    assert (folder / "jane.comfyui.safetensors").exists() == (kind == "lokr")
    best = {"variant": "main", "phase": "main", "step": 3, "rule": "best", "lora_scale": 1.0, "metrics": {}}
    best |= {"calibration": {}, "runners_up": [], "picked_by_hand": False}
    card = write_card("jane", stage, best, [], [], 30, no_comfyui() if kind == "dora" else "")
    assert ("ComfyUI: no file, since it is a DoRA" in card) == (kind == "dora")


def test_blocks_of_a_dora_are_not_weighted(photo_world):
    path, _ = trained_file(photo_world, "dora")
    base = open_base(ModelSource(source=str(photo_world.base)), offline=True)
    with (
        pytest.raises(UserError, match="cannot be weighted"),
        adapter_on(base, LoraFile(path, sha256_of_file(path)), 1.0, (("single.0", 0.0),)),
    ):
        pass
