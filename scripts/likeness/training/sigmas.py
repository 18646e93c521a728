"""From which noise levels training draws; sigma 0 is the image, 1 is noise.

The shift moves draws towards noise as the model's scheduler does when it samples, s·σ / (1 + (s − 1)·σ): large pictures
need more noise to lose the same share of their content (arXiv:2403.03206, section 5.3.2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from likeness.config.training import SigmaSettings


def draw_sigma(settings: SigmaSettings, generator: np.random.Generator, shift: float) -> float:
    """Draw one noise level in 0..1; `shift` is read by the distribution 'shifted' alone (see `shift_for`)."""
    if settings.distribution == "uniform":
        return float(generator.random())
    sigma = 1.0 / (1.0 + math.exp(-(settings.scale * float(generator.standard_normal()) + settings.bias)))
    return sigma if settings.distribution == "sigmoid" else shift_sigma(sigma, shift)


def shift_sigma(sigma: float, shift: float) -> float:
    """Move a noise level towards noise by a factor of 1 or more (below 1: towards the image)."""
    return shift * sigma / (1.0 + (shift - 1.0) * sigma)


def shift_for(settings: SigmaSettings, tokens: int, scheduler_config: Mapping[str, Any]) -> float:
    """The factor for a picture of `tokens` target tokens: the given one, or exp(mu) with mu linear in the tokens.

    Must agree with diffusers `calculate_shift`, with the numbers of the checkpoint's scheduler_config.json.
    """
    if settings.shift != "linear":
        return settings.shift
    low, high = scheduler_config.get("base_image_seq_len", 256), scheduler_config.get("max_image_seq_len", 4096)
    base, top = scheduler_config.get("base_shift", 0.5), scheduler_config.get("max_shift", 1.15)
    return math.exp(base + (top - base) * (tokens - low) / (high - low))
