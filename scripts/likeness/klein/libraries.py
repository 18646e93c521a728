"""The classes of diffusers and peft that FLUX.2 [klein] is made of, imported without what they try on the way.

Both import bitsandbytes wherever it is installed, which costs every job seconds and which nothing here reaches through them.
So it looks as if it were not installed until the classes are imported; who wants it afterwards imports it as ever.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusers.pipelines.flux2.pipeline_flux2_klein import Flux2KleinPipeline


@contextmanager
def left_out(*names: str) -> Iterator[None]:
    """Let modules look as if they were not installed while the block runs; those that are imported already stay."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # pyright: ignore[reportArgumentType, reportCallIssue]
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)


with left_out("bitsandbytes"):
    from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2
    from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
    from peft import LoKrConfig, LoraConfig, PeftConfig
    from peft.import_utils import is_bnb_4bit_available, is_bnb_available
    from peft.tuners.tuners_utils import BaseTunerLayer

    # peft asks again for every module that it adapts, and remembers the first answer.
    is_bnb_available()
    is_bnb_4bit_available()


def pipeline_class() -> type[Flux2KleinPipeline]:
    """The pipeline, which brings its text encoder's library with it, so only what needs all of it asks."""
    with left_out("bitsandbytes"):
        from diffusers.pipelines.flux2.pipeline_flux2_klein import Flux2KleinPipeline
    return Flux2KleinPipeline


__all__ = [
    "AutoencoderKLFlux2",
    "BaseTunerLayer",
    "FlowMatchEulerDiscreteScheduler",
    "Flux2Transformer2DModel",
    "LoKrConfig",
    "LoraConfig",
    "PeftConfig",
    "pipeline_class",
]
