"""Concept Sliders for flow matching: velocities are affine in the noise that they predict, so they add up alike.

Axes: B samples, L target tokens, C latent channels, T text tokens, D embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from likeness.config.losses import SliderSettings
from likeness.training.losses.objective import Seen
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
        target_BTD, *others = (self._for_batch(seen, one_TD) for one_TD in self.embeddings)
        wanted_BLC = seen.predict_without_adapter(embeddings_BTD=target_BTD).float()
        for positive_BTD, negative_BTD in zip(others[::2], others[1::2], strict=True):
            more_BLC = seen.predict_without_adapter(embeddings_BTD=positive_BTD).float()
            less_BLC = seen.predict_without_adapter(embeddings_BTD=negative_BTD).float()
            wanted_BLC = wanted_BLC + self.settings.guidance * (more_BLC - less_BLC)
        found_BLC = seen.predict(embeddings_BTD=target_BTD)
        return weighted_error(found_BLC, wanted_BLC, torch.ones_like(seen.batch.weights_BL))

    def _for_batch(self, seen: Seen, embedding_TD: torch.Tensor) -> torch.Tensor:
        like_BTD = seen.batch.embeddings_BTD
        return embedding_TD.to(like_BTD.device, like_BTD.dtype).expand(like_BTD.shape[0], -1, -1)
