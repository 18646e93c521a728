"""Position ids of text, target and reference tokens, and how a reference picture is brought to size.

Must agree with diffusers pipeline_flux2_klein.py (`_prepare_latent_ids`, `_prepare_text_ids`, `_prepare_image_ids`) and
its Flux2ImageProcessor. The model reads the ids of one sample only and applies them to the whole batch, so they have
no batch axis here: samples of one batch must share the target's grid and those of all references.

Axes: L tokens in row order, 4 coordinates (time, row, column, text position).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

REFERENCE_TIME_STEP = 10
"""The i-th reference (from 0) has the time coordinate 10 · (i + 1); the target has 0."""

REFERENCE_MAX_PIXELS = 1024 * 1024
"""References above this area are scaled down to it, as the pipeline does."""


def target_ids(height_tokens: int, width_tokens: int) -> torch.Tensor:
    """Ids of the picture to be made: (0, row, column, 0), shape (L, 4)."""
    return _grid_ids(0, height_tokens, width_tokens)


def text_ids(length: int) -> torch.Tensor:
    """Ids of the prompt's tokens: (0, 0, 0, position), shape (L, 4)."""
    ids_L4 = torch.zeros(length, 4, dtype=torch.int64)
    ids_L4[:, 3] = torch.arange(length)
    return ids_L4


def reference_ids(grids: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Ids of all references in turn: the i-th has time 10·(i + 1) and its own grid (height, width in tokens)."""
    if not grids:
        return torch.zeros(0, 4, dtype=torch.int64)
    return torch.cat(
        [_grid_ids(REFERENCE_TIME_STEP * (index + 1), height, width) for index, (height, width) in enumerate(grids)]
    )


def fit_reference(image: Image.Image, token_px: int, max_pixels: int = REFERENCE_MAX_PIXELS) -> Image.Image:
    """Scale a reference down to `max_pixels` where it is larger (Lanczos), then cut its centre to whole tokens.

    Nothing is scaled up. Raises ValueError for a picture with a side shorter than one token.
    """
    if image.width * image.height > max_pixels:
        scale = math.sqrt(max_pixels / (image.width * image.height))
        size = (int(image.width * scale), int(image.height * scale))
        image = image.resize(size, Image.Resampling.LANCZOS)
    width, height = image.width // token_px * token_px, image.height // token_px * token_px
    if not width or not height:
        raise ValueError(f"a reference of {image.width}×{image.height} px is smaller than one token of {token_px} px")
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def image_tensor(image: Image.Image) -> torch.Tensor:
    """Turn a picture into image_CHW, float32 in -1..1."""
    array_HWC = np.asarray(image.convert("RGB"), dtype=np.float32) / 255.0
    return torch.from_numpy(2.0 * array_HWC - 1.0).permute(2, 0, 1).contiguous()


def preprocess_reference(image: Image.Image, token_px: int, max_pixels: int = REFERENCE_MAX_PIXELS) -> torch.Tensor:
    """`fit_reference`, then `image_tensor`: the image_CHW to hand to `encode_images`."""
    return image_tensor(fit_reference(image, token_px, max_pixels))


def _grid_ids(time: int, height_tokens: int, width_tokens: int) -> torch.Tensor:
    ids_HW4 = torch.zeros(height_tokens, width_tokens, 4, dtype=torch.int64)
    ids_HW4[..., 0] = time
    ids_HW4[..., 1] = torch.arange(height_tokens)[:, None]
    ids_HW4[..., 2] = torch.arange(width_tokens)
    return ids_HW4.reshape(-1, 4)
