"""Concept Sliders for flow matching: velocities are affine in the noise that they predict, so they add up alike.

A slider is taught by two prompts, or by pairs of pictures.

Axes: B samples, L target tokens, C latent channels, T text tokens, D embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from likeness.config.losses import ImageSliderSettings, SliderSettings
from likeness.training.adapter import AdapterScales
from likeness.training.losses.objective import Seen, predict
from likeness.training.losses.velocity import weighted_error


@dataclass(frozen=True)
class SliderLoss:
    """Draws the adapted model's answer to the target towards the bare one's plus the direction (arXiv:2311.12092).

    `embeddings` are those of `settings.prompts`, each (T, D). At an adapter without effect the loss is the squared length
    of guidance · Σ (positive − negative).
    """

    settings: SliderSettings
    embeddings: Sequence[torch.Tensor]

    def __call__(self, seen: Seen) -> torch.Tensor:
        target_BTD, *others = (for_batch(one_TD, seen) for one_TD in self.embeddings)
        wanted_BLC = seen.predict_without_adapter(embeddings_BTD=target_BTD).float()
        for positive_BTD, negative_BTD in zip(others[::2], others[1::2], strict=True):
            more_BLC = seen.predict_without_adapter(embeddings_BTD=positive_BTD).float()
            less_BLC = seen.predict_without_adapter(embeddings_BTD=negative_BTD).float()
            wanted_BLC = wanted_BLC + self.settings.guidance * (more_BLC - less_BLC)
        found_BLC = seen.predict(embeddings_BTD=target_BTD)
        return weighted_error(found_BLC, wanted_BLC, torch.ones_like(seen.batch.weights_BL))


@dataclass(frozen=True)
class ImageSliderLoss:
    """Draws the adapted model at `strength` to the targets of pairs, and at minus `strength` to their sources.

    ‖v̂₊ₛ(zᴮ) − (ε − B)‖² + ‖v̂₋ₛ(zᴬ) − (ε − A)‖² for source A and target B, with one noise ε, one noise level and one prompt,
    without reference tokens, each averaged as the velocity's error is. Image sliders of arXiv:2311.12092; their published
    program has another prompt on either side, which teaches the prompts' difference as well.
    """

    settings: ImageSliderSettings
    embedding_TD: torch.Tensor

    def __call__(self, seen: Seen) -> torch.Tensor:
        source_BLC, strength = seen.batch.source_BLC, self.settings.strength
        assert source_BLC is not None, "sources must be encoded at the size of their targets"
        more_B = self._error(seen, seen.batch.latents_BLC, strength)
        return more_B + self._error(seen, source_BLC, -strength)

    def _error(self, seen: Seen, clean_BLC: torch.Tensor, strength: float) -> torch.Tensor:
        text_BTD = for_batch(self.embedding_TD, seen)
        alone = replace(seen.batch, embeddings_BTD=text_BTD, reference_BRC=None, reference_ids=None)
        noisy_BLC = torch.lerp(clean_BLC, seen.noise_BLC, seen.sigma_B[:, None, None])
        with AdapterScales(seen.transformer, strength):
            predicted_BLC = predict(seen.transformer, alone, noisy_BLC, seen.sigma_B)
        return weighted_error(predicted_BLC, seen.noise_BLC - clean_BLC, seen.batch.weights_BL)


def for_batch(embedding_TD: torch.Tensor, seen: Seen) -> torch.Tensor:
    """One prompt's embedding for every sample of a micro-batch."""
    like_BTD = seen.batch.embeddings_BTD
    return embedding_TD.to(like_BTD.device, like_BTD.dtype).expand(like_BTD.shape[0], -1, -1)
