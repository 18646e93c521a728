"""Result files in the real pipeline: what is merged draws what the adapters draw together."""

from __future__ import annotations

import pytest
import torch
from tests.tiny import tiny_pipeline

from likeness.lora.files import save_lora
from likeness.lora.merge import merge_loras
from likeness.lora.operation import write_operation
from likeness.lora.subtract import subtract_lora


@pytest.fixture(scope="module")
def files(two_adapters, tmp_path_factory):
    folder = tmp_path_factory.mktemp("loras")
    for name, lora in two_adapters.loras.items():
        save_lora(folder / f"{name}.safetensors", lora, {})
    return folder


@pytest.fixture(scope="module")
def pipeline():
    torch.set_num_threads(1)
    return tiny_pipeline(seed=1)


def drawn(pipeline, adapters):
    """Latents of two steps with adapters loaded from files at their weights; {} is the bare base."""
    for name, (path, _) in adapters.items():
        pipeline.load_lora_weights(str(path), adapter_name=name)
    if adapters:
        pipeline.set_adapters(list(adapters), [weight for _, weight in adapters.values()])
    generator = torch.Generator().manual_seed(0)
    options = {"height": 32, "width": 32, "num_inference_steps": 2, "output_type": "latent", "max_sequence_length": 64}
    latents = pipeline(prompt="a person", generator=generator, **options).images
    pipeline.unload_lora_weights()
    return latents


def test_two_adapters_at_run_time_are_the_merged_file(files, pipeline, two_adapters):
    a, b, merged = (files / f"{name}.safetensors" for name in ("a", "b", "merged"))
    loras = [two_adapters.loras["a"], two_adapters.loras["b"]]
    base = drawn(pipeline, {})
    together = drawn(pipeline, {"a": (a, 0.7), "b": (b, -0.3)})
    write_operation(merged, merge_loras(loras, [0.7, -0.3]), {})
    assert (together - base).abs().max() > 1e-2
    assert torch.allclose(drawn(pipeline, {"merged": (merged, 1.0)}), together, atol=1e-5)
    write_operation(merged, subtract_lora(*loras, 0.5), {})
    subtracted = drawn(pipeline, {"a": (a, 1.0), "b": (b, -0.5)})
    assert torch.allclose(drawn(pipeline, {"merged": (merged, 1.0)}), subtracted, atol=1e-5)


def test_weight_1_is_bit_for_bit_and_weight_0_is_the_base(files, pipeline, two_adapters):
    a, merged = files / "a.safetensors", files / "one.safetensors"
    write_operation(merged, merge_loras([two_adapters.loras["a"], two_adapters.loras["b"]], [1.0, 0.0]), {})
    assert torch.equal(drawn(pipeline, {"m": (merged, 1.0)}), drawn(pipeline, {"a": (a, 1.0)}))
    assert torch.equal(drawn(pipeline, {"m": (merged, 0.0)}), drawn(pipeline, {}))
