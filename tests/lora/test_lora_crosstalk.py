"""Shared directions of two LoRAs. Oracles: scipy's principal angles, planted subspaces, and chance in a simulation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from tests.lora.test_lora_blocks import lora_on

from likeness.errors import UserError
from likeness.lora.adapter import Lora, LoraModule
from likeness.lora.crosstalk import overlaps, shared_directions

NAME = "transformer_blocks.0.attn.to_q"


def one(down_RI, up_OR, scale=1.0):
    return Lora({NAME: LoraModule(torch.as_tensor(down_RI).float(), torch.as_tensor(up_OR).float(), scale)})


def test_agrees_with_principal_angles_and_full_matrices():
    generator = np.random.default_rng(0)
    first = one(generator.normal(size=(3, 40)), generator.normal(size=(30, 3)), 0.5)
    second = one(generator.normal(size=(5, 40)), generator.normal(size=(30, 5)), 2.0)
    (found,) = overlaps(first, second)
    ours, theirs = first.modules[NAME], second.modules[NAME]
    angles = subspace_angles(ours.A_RI.T.double().numpy(), theirs.A_RI.T.double().numpy())
    assert found.inputs == pytest.approx(np.mean(np.cos(angles) ** 2), rel=1e-5)
    angles = subspace_angles(ours.B_OR.double().numpy(), theirs.B_OR.double().numpy())
    assert found.outputs == pytest.approx(np.mean(np.cos(angles) ** 2), rel=1e-5)
    flat = [module.delta().double().flatten() for module in (ours, theirs)]
    assert found.cosine == pytest.approx(float(torch.cosine_similarity(*flat, dim=0)), abs=1e-6)


def test_planted_subspaces():
    down, up = np.eye(4, 20), np.eye(30, 4)
    (same,) = overlaps(one(down, up), one(down[:2], up[:, :2], -3.0))
    assert same.inputs == same.outputs == pytest.approx(1.0) and same.cosine < 0
    (apart,) = overlaps(one(down, up), one(np.roll(down, 8, axis=1), up))
    assert apart.inputs == pytest.approx(0.0) and apart.outputs == pytest.approx(1.0) and apart.cosine == 0


def test_random_subspaces_overlap_by_chance():
    generator, found = np.random.default_rng(1), []
    for _ in range(60):
        pair = [
            LoraModule(torch.as_tensor(generator.normal(size=(rank, 64))).float(), torch.ones(8, rank) * 0 + torch.eye(8)[:, :rank], 1.0)
            for rank in (3, 6)
        ]  # fmt: skip
        found.append(shared_directions(*pair))
    assert np.mean([shared for shared, _ in found]) == pytest.approx(found[0][1], rel=0.1)


def test_only_modules_that_both_change_count(layout):
    first = lora_on([NAME, "single_transformer_blocks.0.attn.to_out"], layout)
    second = lora_on([NAME, "x_embedder"], layout, seed=4)
    assert [found.module for found in overlaps(first, second)] == [NAME]
    silent = Lora({NAME: first.modules[NAME]._replace(scale=0.0)})
    assert overlaps(silent, second) == []
    with pytest.raises(UserError, match="different base models"):
        overlaps(first, one(np.eye(2, 20), np.eye(30, 2)))
