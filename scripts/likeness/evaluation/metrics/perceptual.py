"""Metrics that need learned weights: LPIPS, CLIP and DINO; without them a null that names what is missing.

LPIPS takes an AlexNet trunk (torchvision's file, as `.pth` read with weights_only, or safetensors); the linear layers
on top come with the lpips package. CLIP is a local folder in transformers layout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from likeness.evaluation.metrics.registry import Measured, metric, not_measured

if TYPE_CHECKING:
    from likeness.evaluation.sample import Sample

AGAINST = "the base's image of the same prompt, seed and noise; edit: the source"


@metric("lpips", unit="distance", against=AGAINST, group="lpips", kinds=("subject", "bleed", "neutral"))
def lpips(sample: Sample) -> Measured:
    """Learned perceptual distance (LPIPS 0.1, AlexNet)."""
    if sample.models.lpips is None:
        return not_measured("no_weights: AlexNet trunk, key evaluation.lpips (alexnet-owt-7be5be79.pth)")
    if sample.is_own_base:
        return not_measured("not_applicable: this is the base's own image")
    if sample.against_HWC is None:
        return not_measured("no_reference: the image to compare with is missing")
    return Measured(sample.models.lpips.distance(sample.image_HWC, sample.against_HWC))


NO_CLIP = "no_weights: CLIP model folder, key evaluation.clip (config.json, model.safetensors, tokenizer)"


@metric(
    "clip_score",
    unit="0..2.5",
    against="the prompt without its trigger",
    group="clip",
    kinds=("subject", "bleed", "neutral"),
)
def clip_score(sample: Sample) -> Measured:
    """2.5 times the cosine between image and prompt (2104.08718), the trigger taken out of the prompt."""
    if sample.models.clip is None:
        return not_measured(NO_CLIP)
    text_D = sample.models.clip.text_embedding(sample.plain_prompt)
    return Measured(2.5 * max(0.0, float(np.dot(sample.clip_image_D, text_D))))


@metric(
    "style_similarity",
    unit="cosine, -1..1",
    against="the mean CLIP embedding of the held-out pictures",
    group="clip",
)
def style_similarity(sample: Sample) -> Measured:
    """Cosine of the CLIP image embedding to that of the subject's own pictures."""
    if sample.models.clip is None:
        return not_measured(NO_CLIP)
    if sample.style_D is None:
        return not_measured("no_reference: there is no picture to compare with")
    return Measured(float(np.dot(sample.clip_image_D, sample.style_D)))


@metric("drift_dino", unit="cosine, -1..1", against=AGAINST, group="dino", kinds=("neutral",))
def drift_dino(sample: Sample) -> Measured:
    """Cosine of DINOv2 embeddings between the LoRA's and the base's image of a neutral prompt."""
    return not_measured("no_weights: DINOv2, for which this version has no key")
