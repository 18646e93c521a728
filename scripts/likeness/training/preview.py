"""Pictures at every checkpoint, while training still runs: the same few prompts from the same noise.

They are for a person to look at and judge nothing: evaluation draws its own, of finished checkpoints. The weights drawn
with are those that are saved for evaluation; afterwards all is as it was, to the bit.

Axes: B pictures, L target tokens, C latent channels, T text tokens, D embedding width, H and W of tokens or pixels.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from likeness.config.training import SampleSettings
from likeness.klein.latents import decode_latents, unpack
from likeness.klein.load import BaseModel
from likeness.klein.sample import initial_noise, sample_images
from likeness.training.board import Board
from likeness.training.ema import Ema
from likeness.training.loop import Training
from likeness.training.optimizers import weights_to_save

FOLDER = "samples"

logger = logging.getLogger(__name__)


def draw_samples_of(
    training: Training, base: BaseModel, settings: SampleSettings, folder: Path, board: Board
) -> list[Path]:
    """Draw every prompt with the adapter as it is saved, as PNG files named by step and place; returns their paths.

    Where memory does not suffice, those that are left are not drawn, with a warning. The VAE does not stay in memory, unless
    a loss needs it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    try:
        with saved_weights(training):
            for place, prompt in enumerate(settings.prompts):
                pixels_HWC = draw_sample_of(training, base, settings, place)
                path = folder / f"step-{training.step:06d}-{place}.png"
                Image.fromarray(pixels_HWC).save(path)
                board.show_picture(training.step, f"samples/{place} {prompt[:60]}", pixels_HWC)
                paths.append(path)
    except torch.OutOfMemoryError:
        logger.warning(
            "step %d: out of memory after %d of %d pictures of training.samples; training goes on without the others",
            *(training.step, len(paths), len(settings.prompts)),
        )
    if training.vae is None:
        base.release("vae")
    return paths


def draw_sample_of(training: Training, base: BaseModel, settings: SampleSettings, place: int) -> np.ndarray:
    """Draw one prompt as pixels_HWC; in an edit with the references of a training pair."""
    data, embedding_TD = training.data, training.data.prompts[settings.prompts[place]]
    side_px = training.settings.buckets.resolution_px // base.token_px * base.token_px
    side = side_px // base.token_px
    example = list(data.samples.values())[place % len(data.samples)]
    channels = example.latents_LC.shape[1]
    dtype = training.transformer.dtype
    noise_BLC = initial_noise(settings.seed, settings.prompts[place], (1, side * side, channels))
    latents_BLC = sample_images(
        training.transformer,
        base.scheduler,
        embedding_TD[None].to(data.device, dtype),
        data.empty_TD[None].to(data.device, dtype),
        noise_BLC.to(data.device, dtype),
        height=side_px,
        width=side_px,
        references=[references_of(training, example.sample_id)],
        num_inference_steps=settings.steps,
        guidance_scale=1.0 if base.is_distilled else settings.guidance,
    )
    image_CHW = decode_latents(base.vae, unpack(latents_BLC, side, side))[0]
    return ((image_CHW.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()


def references_of(training: Training, sample_id: str) -> list[torch.Tensor]:
    """The latents_CHW of a sample's references."""
    sample, start, found = training.data.samples[sample_id], 0, []
    for height, width in sample.group[1]:
        tokens_LC = sample.references_RC[start : start + height * width]
        found.append(unpack(tokens_LC[None], height, width)[0].to(training.data.device))
        start += height * width
    return found


@contextlib.contextmanager
def saved_weights(training: Training) -> Iterator[None]:
    """Put the weights that evaluation will see into the adapter, and afterwards those that are trained, bit for bit."""
    ema = next((one for one in training.followers if isinstance(one, Ema)), None)
    weights = training.weights
    with weights_to_save(training.optimizer, list(weights.values())):
        if ema is None or training.settings.ema.evaluate != "ema":
            yield
            return
        kept = {name: weight.detach().clone() for name, weight in weights.items()}
        try:
            with torch.no_grad():
                for name, weight in weights.items():
                    weight.copy_(ema.weights[name])
            yield
        finally:
            with torch.no_grad():
                for name, weight in weights.items():
                    weight.copy_(kept[name])
