"""An image slider in the drawn world: strength up leads to what pairs end as, strength down to what they start as.

Pairs end smiling before white, so how white a picture's upper corners are tells on which side it lies.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from likeness.config.base import ModelSource
from likeness.config.training import EncodeStage, TrainingSettings
from likeness.klein.latents import decode_latents, unpack
from likeness.klein.load import BaseModel
from likeness.klein.sample import initial_noise, sample_images
from likeness.miniature.photos import draw_pair, save_photo, smile_scenes
from likeness.miniature.scenes import sample_identities
from likeness.store import Store, sha256_of_file
from likeness.tables import MANIFEST, PAIRS, read_rows, write_table
from likeness.training.adapter import AdapterScales
from likeness.training.base import open_base
from likeness.training.data import TrainingData, load_samples
from likeness.training.encode import encode_samples
from likeness.training.loop import Training, train
from likeness.training.losses.objective import predict
from likeness.training.run import prepare

pytestmark = pytest.mark.slow

PROMPT = "a person, close portrait, facing the camera, even light"
COUNT, HELD_OUT = 24, 4
SIDE_PX, CORNER_PX, IMAGES, STEPS = 16, 3, 16, 60
BUCKETS = {"resolution_px": SIDE_PX, "bucket_step_px": 2, "max_aspect": 1.0, "reference_resolution_px": SIDE_PX}
SETTINGS = TrainingSettings.model_validate(
    {
        "rank": 8,
        "init": "gaussian",
        "batch_size": 8,
        "learning_rate": 8e-3,
        "steps": STEPS,
        "precision": "float32",
        "buckets": BUCKETS,
        "losses": {"velocity": {"weight": 0.0}, "image_slider": {"prompt": PROMPT}},
    }
)


def encoded_pairs(folder: Path, model: ModelSource, store: Store) -> list[dict]:
    """Draw pairs and encode them; the ENCODED rows."""
    rng = np.random.default_rng(11)
    identities, scenes = sample_identities(COUNT, rng), smile_scenes(COUNT, rng)
    pairs, samples = [], []
    for place in range(COUNT):
        paths = [folder / f"{place:02d}_{name}.png" for name in ("start", "end")]
        for path, image_HWC in zip(
            paths, draw_pair(identities[place : place + 1], scenes.take(place), "", rng, 128), strict=True
        ):
            save_photo(image_HWC, path)
        source, target = map(sha256_of_file, paths)
        size = {"width_px": 128, "height_px": 128, "source_width_px": 128, "source_height_px": 128}
        row = {"id": f"{place:02d}", "source_path": str(paths[0]), "target_path": str(paths[1]), "reference_paths": []}
        row |= {"sha256": target, "source_sha256": source, "reference_sha256s": []}
        pairs.append(row | size | {"repeats": 1, "status": "ok", "reason": ""})
        sample = {"sample_id": target, "image_sha256": target, "mask_sha256": None, "reference_sha256s": [source]}
        samples.append(sample | {"caption": "make the person smile", "repeats": 1})
    write_table(folder / "pairs.parquet", PAIRS, pairs)
    write_table(folder / "manifest.parquet", MANIFEST, samples)
    stage = EncodeStage(
        base_model=model,
        buckets=(SETTINGS.buckets,),
        mask_kind=None,
        unmasked_weights=(),
        sources=True,
        prompts=SETTINGS.prompts,
    )
    tables = (folder / "manifest.parquet", folder / "pairs.parquet", store, folder / "encoded.parquet")
    encode_samples(stage, *tables)
    return read_rows(folder / "encoded.parquet")


@torch.no_grad()
def errors(training: Training, unseen: TrainingData, strength: float) -> tuple[float, float]:
    """Mean squared error of the velocity on pairs that were not trained on: of their targets, and of their sources."""
    found: tuple[list[float], list[float]] = ([], [])
    for name in unseen.samples:
        batch = unseen.batch([name], [False])
        alone = replace(batch, embeddings_BTD=unseen.prompts[PROMPT][None], reference_BRC=None, reference_ids=None)
        for sigma in (0.3, 0.6, 0.9):
            noise_BLC = initial_noise(0, f"{name} {sigma}", batch.latents_BLC.shape)
            for values, clean_BLC in zip(found, (batch.latents_BLC, batch.source_BLC), strict=True):
                noisy_BLC = torch.lerp(clean_BLC, noise_BLC, sigma)
                with AdapterScales(training.transformer, strength):
                    predicted_BLC = predict(training.transformer, alone, noisy_BLC, torch.tensor([sigma]))
                values.append(float((predicted_BLC - (noise_BLC - clean_BLC)).square().mean()))
    return float(np.mean(found[0])), float(np.mean(found[1]))


def whiteness(training: Training, base: BaseModel, strength: float) -> float:
    """How white the upper corners of drawn pictures are, 0..1, from the same noise at every strength."""
    side = SIDE_PX // base.token_px
    channels = next(iter(training.data.samples.values())).latents_LC.shape[1]
    noise_BLC = torch.cat([initial_noise(seed, PROMPT, (1, side * side, channels)) for seed in range(IMAGES)])
    text_BTD = training.data.prompts[PROMPT].expand(IMAGES, -1, -1)
    with AdapterScales(training.transformer, strength):
        latents_BLC = sample_images(
            training.transformer, base.scheduler, text_BTD, None, noise_BLC, SIDE_PX, SIDE_PX, None, 12, 1.0
        )
    images_BCHW = (decode_latents(base.vae, unpack(latents_BLC, side, side)).clamp(-1, 1) + 1) / 2
    corners = torch.cat([images_BCHW[..., :CORNER_PX, :CORNER_PX], images_BCHW[..., :CORNER_PX, -CORNER_PX:]])
    return float(corners.amin(dim=1).mean())


def test_up_leads_to_the_targets_and_down_to_the_sources(miniature: Path, tmp_path: Path) -> None:
    model, store = ModelSource(source=str(miniature / "base")), Store(tmp_path / "store")
    rows = encoded_pairs(tmp_path, model, store)
    base = open_base(model, offline=True)
    torch.set_num_threads(1)
    learned, unseen = (load_samples(part, SETTINGS, store, base.device) for part in (rows[HELD_OUT:], rows[:HELD_OUT]))
    training = prepare(base, SETTINGS, learned, None)
    bare = errors(training, unseen, 1.0)
    train(training, STEPS, lambda _: None)
    up, down = (errors(training, unseen, sign) for sign in (1.0, -1.0))
    white = {sign: whiteness(training, base, sign) for sign in (-1.0, 0.0, 1.0)}
    print(f"\nerrors of target and source: bare {bare}, up {up}, down {down}; white corners by strength {white}")
    assert up[0] < bare[0] < down[0] and down[1] < up[1]
    assert white[1.0] > white[0.0] + 0.1 and white[1.0] > white[-1.0] + 0.1
