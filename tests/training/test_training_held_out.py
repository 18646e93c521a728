"""The held-out loss against a loop of its own; what it may and may not move."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline

from likeness.store import remove_tree, sha256_of_bytes
from likeness.tables import HOLDOUT, LOG, read_rows, write_table
from likeness.training.encode import read_tensors
from likeness.training.held_out import HELD_OUT_LOSS, grid_sigmas
from likeness.training.noise import generator_for
from likeness.training.train import train_lora


def train(world, out="out", **changes):
    stage = world.train_stage(**{"steps": 4, "save_every": 2, "held_out_sigmas": 8, **changes})
    return train_lora(stage, world.manifest, world.encoded, None, world.store, world.root / out)


def losses(world, out="out"):
    return [row["held_out_loss"] for row in read_rows(world.root / out / "log.parquet", LOG)]


def by_hand(world, path) -> float:
    """The same grid with the pipeline's own loader, packing and ids, one forward at a time."""
    pipeline = Flux2KleinPipeline.from_pretrained(world.base)
    pipeline.load_lora_weights(path.parent, weight_name=path.name)
    values = []
    for row in (row for row in read_rows(world.encoded) if row["held_out"]):
        hashes = [row["latents_sha256"], row["embedding_sha256"]]
        latents, embedding = (read_tensors(world.store, hashes)[sha256][None] for sha256 in hashes)
        clean = pipeline._pack_latents(latents)
        weights = torch.ones(clean.shape[1])
        if row["weight_sha256"]:
            weights = 0.1 + 0.9 * read_tensors(world.store, [row["weight_sha256"]])[row["weight_sha256"]].flatten()
        for sigma in grid_sigmas(8):
            generator = generator_for(0, "held out", row["latents_sha256"], repr(sigma))
            noise = torch.from_numpy(generator.standard_normal(tuple(clean.shape[1:]), dtype=np.float32))[None]
            with torch.no_grad():
                velocity = pipeline.transformer(
                    hidden_states=(1 - sigma) * clean + sigma * noise,
                    timestep=torch.tensor([sigma]),
                    guidance=None,
                    encoder_hidden_states=embedding,
                    txt_ids=pipeline._prepare_text_ids(embedding),
                    img_ids=pipeline._prepare_latent_ids(latents),
                    return_dict=False,
                )[0]
            error = (velocity - (noise - clean)).square().mean(dim=-1)[0]
            values.append(((weights * error).sum() / weights.sum()).item())
    return sum(values) / len(values)


def test_the_held_out_loss_is_that_of_the_files_on_a_fixed_grid(photo_world):
    world = photo_world
    world.hold_out(2)
    world.encode()
    train(world, learning_rate=1e-3)
    found = losses(world)
    assert [value is None for value in found] == [True, False, True, False]
    assert found[1] == pytest.approx(by_hand(world, world.root / "out/step-000002.safetensors"), rel=1e-5)
    assert found[3] == pytest.approx(by_hand(world, world.root / "out/step-000004.safetensors"), rel=1e-5)
    assert found[1] != found[3]


def test_another_holdout_is_measured_and_trains_nothing(photo_world):
    world = photo_world
    world.hold_out(2)
    world.encode()
    train(world)
    before, checkpoints = losses(world), {path.name: path.read_bytes() for path in (world.root / "out").glob("step-*")}
    rows = read_rows(world.holdout, HOLDOUT)
    write_table(world.holdout, HOLDOUT, rows[:1])
    world.encode()
    assert train(world).computed == 0
    after = losses(world)
    assert after[1] is not None and after[1] != before[1]
    assert {path.name: path.read_bytes() for path in (world.root / "out").glob("step-*")} == checkpoints
    write_table(world.holdout, HOLDOUT, [row | {"use": "reference"} for row in rows])
    world.encode()
    train(world)
    assert losses(world) == [None] * 4, "references show who somebody is, and are not measured"
    assert train(world, held_out_sigmas=0).computed == 0


def test_held_out_samples_are_never_trained_on(photo_world):
    world = photo_world
    world.hold_out(2)
    world.encode()
    train(world, "with")
    trained = {sample for row in read_rows(world.root / "with/log.parquet", LOG) for sample in row["samples"]}
    assert not trained & {row["sample_id"] for row in read_rows(world.holdout, HOLDOUT)}
    world.holdout = None
    world.encode()
    assert train(world, "without").computed == 0, "the holdout is no part of a training's name"


def test_another_mask_is_asked_the_same_questions(photo_world):
    """A sample's id changes with its mask, but a training that reads no mask is measured as before."""
    world = photo_world
    world.hold_out(2)
    world.encode()
    plain = {"masked_loss": {"kind": None}, "caption_dropout": 0.0}
    train(world, **plain)
    before = losses(world)
    rows = read_rows(world.holdout, HOLDOUT)
    others = [row | {"sample_id": sha256_of_bytes(row["sample_id"].encode()), "mask_sha256": None} for row in rows]
    write_table(world.holdout, HOLDOUT, others)
    world.encode()
    assert train(world, **plain).computed == 0
    assert losses(world) == before
    remove_tree(world.store.root / "items" / HELD_OUT_LOSS)
    train(world, **plain)
    assert losses(world) == before, "a value is a function of what it is named by"
