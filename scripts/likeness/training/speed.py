"""What only makes a step faster or smaller: compiled blocks, the kernel of the attention, parts that wait in main memory.

None of it changes a result by more than the order of a sum, as another GPU would.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from likeness.config.training import TrainingSettings
from likeness.errors import UserError
from likeness.klein.load import BaseModel
from likeness.training.frozen import check_kind, hold_in_main_memory

ATTENTION = {
    "flash": "_native_flash",
    "efficient": "_native_efficient",
    "math": "_native_math",
}
"""The kernels by what diffusers calls them; `native` lets torch choose.

FlashAttention 3 is not among them, since diffusers calls it without a gradient; nor is cuDNN's, whose gradient does not
repeat its bits, so that torch refuses it for a training that must.
"""

MOST_SHAPES = 64
"""Compiled versions of one block that are kept: one a bucket, with and without the adapter."""


def load_transformer(base: BaseModel, settings: TrainingSettings) -> Any:
    """The frozen transformer on the base's device, or with its large matrices still in main memory.

    They stay there where they are only stored in 8 bits afterwards: the whole is never on the device. UserError where the
    device cannot compute with them.
    """
    waits = "base" in settings.offload
    if settings.base_precision == "full" and not waits:
        return base.transformer
    check_kind(settings.base_precision, base.device)
    elsewhere = copy.copy(base)
    elsewhere.__dict__.pop("transformer", None)
    elsewhere.device_name = "cpu"
    transformer = elsewhere.transformer
    hold_in_main_memory(transformer, base.device, pinned=waits)
    return transformer


def load_vae(base: BaseModel, settings: TrainingSettings) -> Any:
    """The VAE on the base's device; where it is offloaded, its decoder comes there layer by layer when it is used."""
    vae = base.vae
    if "vae" in settings.offload:
        from accelerate import cpu_offload

        cpu_offload(vae.decoder, execution_device=base.device)
    return vae


def try_attention(transformer: Any, backend: str) -> None:
    """Take attention and its gradient once, of the base's type and size of heads; torch says no only here."""
    from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

    shape = (1, 16, 2, transformer.config.attention_head_dim)
    query, key, value = (
        torch.ones(shape, device=transformer.device, dtype=transformer.dtype, requires_grad=True) for _ in range(3)
    )
    dispatch_attention_fn(query, key, value, backend=AttentionBackendName(backend)).sum().backward()


def speed_up(transformer: Any, settings: TrainingSettings) -> None:
    """Choose the attention's kernel, then compile the blocks; UserError where this machine has no such kernel."""
    if settings.attention != "native":
        try:
            transformer.set_attention_backend(ATTENTION[settings.attention])
            try_attention(transformer, ATTENTION[settings.attention])
        except (ImportError, RuntimeError, ValueError) as error:
            raise UserError(
                f"training.attention: {settings.attention} does not work here ({error}). Set native."
            ) from error
    if settings.compile:
        torch._dynamo.config.recompile_limit = max(MOST_SHAPES, torch._dynamo.config.recompile_limit)
        transformer.compile_repeated_blocks()
