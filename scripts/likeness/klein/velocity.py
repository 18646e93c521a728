"""One call of the transformer, the same for training and sampling.

Reference tokens are appended after the target's, clean, and modulated with the same noise level; only the target's
tokens are returned. Must agree with diffusers pipeline_flux2_klein.py (the denoising loop of `__call__`).

Axes: B batch, L target tokens, R reference tokens (of all references together), T text tokens, C latent channels,
D embedding width, 4 position coordinates.
"""

from __future__ import annotations

import torch
from torch import nn


def predict_velocity(
    transformer: nn.Module,
    noisy_BLC: torch.Tensor,
    sigma_B: torch.Tensor,
    embeddings_BTD: torch.Tensor,
    target_ids: torch.Tensor,
    text_ids: torch.Tensor,
    reference_BRC: torch.Tensor | None = None,
    reference_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """Predict the velocity (noise minus image) of the target tokens, shape (B, L, C), in the transformer's type.

    `sigma_B` is the noise level in 0..1 (0 image, 1 noise); ids are (tokens, 4), shared by the batch, on any device.
    Gradients flow; wrap in `torch.no_grad()` to sample.
    """
    tokens_BLC, ids = noisy_BLC, target_ids
    if reference_BRC is not None:
        assert reference_ids is not None and reference_ids.shape[0] == reference_BRC.shape[1]
        tokens_BLC = torch.cat([noisy_BLC, reference_BRC.to(noisy_BLC.dtype)], dim=1)
        ids = torch.cat([target_ids, reference_ids])
    assert ids.shape[0] == tokens_BLC.shape[1], (ids.shape, tokens_BLC.shape)
    dtype = transformer.dtype
    assert isinstance(dtype, torch.dtype)
    output_BLC = transformer(
        hidden_states=tokens_BLC.to(dtype),
        timestep=sigma_B,
        guidance=None,
        encoder_hidden_states=embeddings_BTD.to(dtype),
        txt_ids=text_ids.to(tokens_BLC.device),
        img_ids=ids.to(tokens_BLC.device),
        return_dict=False,
    )[0]
    return output_BLC[:, : noisy_BLC.shape[1]]
