"""A tiny trained-looking LoRA and the base it belongs to."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from tests.tiny import tiny_transformer

from likeness.klein.family import layout_of
from likeness.klein.targets import target_regex

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
