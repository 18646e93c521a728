"""The loss of held-out samples at every checkpoint, on a grid of noise levels and noise that is always the same.

A step's own loss says little, since the noise level decides most of it; on a fixed grid, checkpoints are compared on
exactly the same questions. Each value is an item of the store, named by the checkpoint's file and the samples, so it is
computed once, and a changed holdout trains nothing. Torch is imported only where a value is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from likeness.config.training import MaskedLossSettings, TrainingSettings
from likeness.store import Store, item_key

if TYPE_CHECKING:
    import torch

    from likeness.training.loop import Training

VERSION = 2
HELD_OUT_LOSS = "held-out-loss"
GRID_SEED = 0
"""The grid's noise is no part of a training's randomness: all trainings of a subject are asked the same.

It follows from the latents and not from the sample's id, which changes with its mask and its caption.
"""


def held_out_losses(
    checkpoints: Mapping[int, str],
    rows: Sequence[Mapping[str, Any]],
    settings: TrainingSettings,
    fingerprint: str,
    store: Store,
    prepare: Callable[[], Training],
) -> dict[int, float]:
    """The held-out loss of every checkpoint by step; empty without held-out samples, or where it is switched off.

    `checkpoints` are hashes of LoRA files by step; `rows` are ENCODED rows; `prepare` gives a training of the held-out
    samples with this adapter's shape, and is called where a value is missing.
    """
    if not rows or not settings.held_out_sigmas:
        return {}
    content = [
        [row["latents_sha256"], row["reference_latents_sha256s"], row["embedding_sha256"], row["face_box"]]
        for row in rows
    ]
    masks = [row["weight_sha256"] for row in rows] if settings.masked_loss.kind else []
    values = {"sigmas": settings.held_out_sigmas, "masked_loss": mask_values(settings.masked_loss)}
    values |= {"precision": settings.precision, "region": settings.losses.velocity.region}
    values |= {"face_weight": settings.losses.velocity.face_weight}
    values |= {"base_precision": settings.base_precision} if settings.base_precision != "full" else {}
    prepared = cache(prepare)
    latents = {row["sample_id"]: row["latents_sha256"] for row in rows}
    found = {}
    for step, sha256 in checkpoints.items():
        key = item_key(HELD_OUT_LOSS, VERSION, values, fingerprint, [sha256, content, masks])
        item = store.load_or_compute(
            HELD_OUT_LOSS, key, lambda sha256=sha256: (measure(prepared(), latents, sha256, store), {})
        )
        found[step] = item.record["loss"]
    return found


def mask_values(masked_loss: MaskedLossSettings) -> dict[str, Any]:
    """The mask's settings as part of an item's name; what is not inverted is named as before there was a choice."""
    values = masked_loss.model_dump(mode="json")
    return values if values.pop("inverted") is False else {**values, "inverted": True}


def measure(training: Training, latents: Mapping[str, str], sha256: str, store: Store) -> dict[str, Any]:
    """Put a checkpoint into the adapter and take its loss at every noise level, averaged over the samples.

    `latents` are hashes by sample id, from which the noise follows.
    """
    from likeness.training.adapter import load_weights
    from likeness.training.files import starting_weights

    path = store.path_of(sha256)
    load_weights(training.weights, starting_weights(path, training.settings, training.layout), str(path))
    by_sigma = {sigma: grid_loss(training, latents, sigma) for sigma in grid_sigmas(training.settings.held_out_sigmas)}
    return {"loss": sum(by_sigma.values()) / len(by_sigma), "by_sigma": [[*pair] for pair in by_sigma.items()]}


def grid_sigmas(count: int) -> list[float]:
    """The middles of `count` equal parts of 0..1."""
    return [(place + 0.5) / count for place in range(count)]


def grid_loss(training: Training, latents: Mapping[str, str], sigma: float) -> float:
    """Mean over the samples of the velocity's weighted squared error at one noise level."""
    import torch

    from likeness.training.losses.velocity import weighted_error

    values = []
    with torch.no_grad():
        for sample_id in sorted(training.data.samples):
            seen = look_at_grid(training, sample_id, latents[sample_id], sigma)
            values.append(weighted_error(seen.predicted_BLC, seen.target_BLC, seen.batch.weights_BL))
    return float(torch.cat(values).double().mean())


def look_at_grid(training: Training, sample_id: str, latents_sha256: str, sigma: float) -> Any:
    """Show one sample at one point of the grid to the model, with its caption."""
    from likeness.training.loop import Draw, look

    shape = tuple(training.data.samples[sample_id].latents_LC.shape)
    draw = Draw(grid_noise(latents_sha256, shape, sigma), sigma, without_caption=False)
    return look(training, [sample_id], [draw])


def grid_noise(latents_sha256: str, shape: tuple[int, ...], sigma: float) -> torch.Tensor:
    """The noise of one point of the grid: a function of the latents and the noise level alone."""
    import numpy as np
    import torch

    from likeness.training.noise import generator_for

    generator = generator_for(GRID_SEED, "held out", latents_sha256, repr(sigma))
    return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))
