"""A tiny trained-looking LoRA and the base it belongs to."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from tests.tiny import tiny_transformer

from likeness.klein.family import layout_of
from likeness.klein.targets import target_regex
from likeness.lora.adapter import LoraModule, lora_of

RANK, ALPHA = 4, 10.0


def adapted_transformer(choice="all_blocks", seed=5):
    """A transformer with a PEFT adapter whose B matrices are not zero; returns it and the targets' expression."""
    torch.set_num_threads(1)
    transformer = tiny_transformer(seed=1)
    regex = target_regex(choice, layout_of(transformer.config))
    transformer.add_adapter(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=regex, init_lora_weights="gaussian"))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in transformer.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.05, generator=generator)
    return transformer.eval(), regex


@pytest.fixture(scope="session")
def adapted():
    return adapted_transformer()


@pytest.fixture(scope="session")
def state_dict(adapted):
    return get_peft_model_state_dict(adapted[0])


@pytest.fixture(scope="session")
def layout(adapted):
    return layout_of(adapted[0].config)


def random_module(rank, outputs=40, inputs=24, scale=1.0, seed=0, dtype=torch.float32, decay=1.0):
    """A module of random factors; `decay` below 1 makes its singular values fall off."""
    generator = torch.Generator().manual_seed(seed)
    down_RI = torch.randn(rank, inputs, generator=generator, dtype=torch.float64)
    up_OR = torch.randn(outputs, rank, generator=generator, dtype=torch.float64) / outputs**0.5
    up_OR *= torch.tensor([decay**index for index in range(rank)])
    return LoraModule(down_RI.to(dtype), up_OR.to(dtype), scale)


def dense(module):
    """Oracle: the change of weight built in float64."""
    return module.scale * module.B_OR.double() @ module.A_RI.double()


def difference(first, second):
    """Relative Frobenius difference of two matrices in float64."""
    first, second = first.double(), second.double()
    return float((first - second).norm() / max(first.norm().item(), 1e-300))


class TwoAdapters:
    """A PEFT model with random adapters of ranks 4 and 6 whose targets differ, and the same as our Loras."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        base = tiny_transformer(seed=1)
        layout, self.loras = layout_of(base.config), {}
        for name, choice, rank, alpha in (("a", "all_blocks", 4, 10.0), ("b", "single_all", 6, 3.0)):
            config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=target_regex(choice, layout))
            if name == "a":
                self.model = get_peft_model(base, config, adapter_name="a")
            else:
                self.model.add_adapter("b", config)
            generator = torch.Generator().manual_seed(rank)
            for key, parameter in self.model.named_parameters():
                if f"lora_B.{name}." in key:
                    parameter.data.normal_(0, 0.05, generator=generator)
            state = get_peft_model_state_dict(self.model, adapter_name=name)
            prefix = "base_model.model."
            self.loras[name] = lora_of({key.removeprefix(prefix): value for key, value in state.items()}, alpha / rank)

    def merged(self, weights, combination, **options):
        """Oracle: every module's change as PEFT's add_weighted_adapter merges it, built in full."""
        if "merged" in self.model.peft_config:
            self.model.delete_adapter("merged")
        self.model.add_weighted_adapter(["a", "b"], list(weights), "merged", combination, **options)
        layers = dict(self.model.base_model.model.named_modules())
        return {name: layers[name].get_delta_weight("merged") for name in self.loras["a"].modules}


@pytest.fixture(scope="session")
def two_adapters():
    return TwoAdapters()
