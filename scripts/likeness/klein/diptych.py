"""Diptychs: an edit as one picture, the source on the left and the target on the right (ICEdit, arXiv:2504.20690).

ICEdit fills the right half with a model made for filling; FLUX.2 [klein] has none, so while sampling the left half is put back
to the noised source after every step. Its own reference tokens suit it better; this is the way for whoever compares.

Axes: B batch, L tokens in row order, C channels, H and W of pixels or tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    import torch

CAPTION = (
    "A diptych with two side-by-side images of the same scene. On the right, the scene is exactly the same as on the left "
    "but {instruction}"
)
Halved = TypeVar("Halved", "np.ndarray", "torch.Tensor")


def diptych_caption(instruction: str) -> str:
    """What a diptych is captioned with; an empty caption stays empty, for guidance and caption dropout."""
    return CAPTION.format(instruction=instruction) if instruction else ""


def join(source_HWC: np.ndarray, target_HWC: np.ndarray) -> np.ndarray:
    """Two pictures of one size side by side, (H, 2W, C)."""
    return np.concatenate([source_HWC, target_HWC], axis=1)


def right_of(picture: Halved, axis: int = -1) -> Halved:
    """The right half along the axis of the width."""
    width = picture.shape[axis]
    index = [slice(None)] * picture.ndim
    index[axis] = slice(width // 2, None)
    return picture[tuple(index)]


def keep_left(source_BCHW: torch.Tensor, noise_BLC: torch.Tensor) -> Callable[[int, float, torch.Tensor], None]:
    """A hook for the end of a sampling step: puts the left half of the latents back to the source at that noise level.

    `source_BCHW` are clean latents of the left half, `noise_BLC` the initial noise of the whole diptych.
    """
    import torch

    height, width = source_BCHW.shape[-2:]
    places = torch.arange(height * 2 * width, device=noise_BLC.device)
    left_K = places[places % (2 * width) < width]
    source_BKC = source_BCHW.flatten(2).transpose(1, 2).to(noise_BLC)

    def put_back(step: int, sigma: float, latents_BLC: torch.Tensor) -> None:
        latents_BLC[:, left_K] = torch.lerp(source_BKC, noise_BLC[:, left_K], sigma).to(latents_BLC.dtype)

    return put_back
