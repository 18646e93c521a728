"""What the adapter must leave alone: the base model's own answers are the target.

Both start at 0, since an adapter starts without effect, and both need the adapter off for one pass without gradient.

Axes: B samples, L target tokens, T text tokens, D embedding width.
"""

from __future__ import annotations

import torch

from likeness.training.losses.objective import Seen
from likeness.training.losses.velocity import weighted_error


def output_preservation(seen: Seen) -> torch.Tensor:
    """Squared difference of adapter on and off for the caption that names the class instead of the trigger.

    Same noisy latents as the sample's own; after ai-toolkit's differential output preservation.
    """
    class_BTD = seen.batch.class_BTD
    assert class_BTD is not None, "captions of the class must be encoded"
    kept_BLC = seen.predict_without_adapter(embeddings_BTD=class_BTD)
    found_BLC = seen.predict(embeddings_BTD=class_BTD)
    return weighted_error(found_BLC, kept_BLC, torch.ones_like(seen.batch.weights_BL))


def masked_prior(seen: Seen) -> torch.Tensor:
    """Squared difference of adapter on and off outside of the mask, for the sample's own caption.

    A sample without a mask, or whose mask covers everything, counts as 0.
    """
    outside_BL = seen.batch.outside_BL
    kept_BLC = seen.predict_without_adapter()
    error_BL = (seen.predicted_BLC.float() - kept_BLC.float()).square().mean(dim=-1)
    return (outside_BL * error_BL).sum(dim=1) / outside_BL.sum(dim=1).clamp_min(1e-6)
