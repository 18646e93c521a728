"""How much each token of a sample counts in the loss: masks, the face, and halves of diptychs.

Axes: B samples, L tokens, H and W of the token grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def token_weights(mask_BL: torch.Tensor, unmasked_weight: float) -> torch.Tensor:
    """Turn masks (share of each token inside, 0..1) into loss weights: 1 inside, `unmasked_weight` outside."""
    return unmasked_weight + (1.0 - unmasked_weight) * mask_BL


def with_face(weights_HW: torch.Tensor, face_HW: torch.Tensor, face_weight: float) -> torch.Tensor:
    """Let tokens of the face (share 0..1) count 1 + `face_weight` times as much, and bring the mean weight to 1."""
    weighted_HW = weights_HW * (1.0 + face_weight * face_HW)
    return weighted_HW / weighted_HW.mean()


def right_half(weights_HW: torch.Tensor) -> torch.Tensor:
    """Silence the left half of a diptych; its width in tokens must be even, so that the seam lies between tokens."""
    height, width = weights_HW.shape
    if width % 2:
        raise ValueError(f"a diptych of {width}×{height} tokens has no seam between tokens")
    seam = torch.arange(width, device=weights_HW.device) >= width // 2
    return weights_HW * seam


def box_on_tokens(box_px: Sequence[float], grid: tuple[int, int], token_px: float) -> torch.Tensor:
    """The share of each token that lies in a box (left, top, right, bottom in px), (H, W), 0..1."""
    left, top, right, bottom = box_px
    return torch.outer(covered(top, bottom, grid[0], token_px), covered(left, right, grid[1], token_px))


def covered(first_px: float, last_px: float, count: int, step_px: float) -> torch.Tensor:
    """The share of each of `count` steps that lies between two places."""
    starts = torch.arange(count) * step_px
    overlap = torch.minimum(starts + step_px, torch.tensor(last_px)) - torch.maximum(starts, torch.tensor(first_px))
    return (overlap / step_px).clamp(0.0, 1.0)
