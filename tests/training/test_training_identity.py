"""The identity loss against insightface, OpenCV and finite differences, on a recogniser of random weights."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch
from insightface.model_zoo.arcface_onnx import ArcFaceONNX
from insightface.utils.face_align import arcface_dst, norm_crop
from onnx import TensorProto, helper, numpy_helper
from tests.tiny import tiny_vae
from tests.training.conftest import BUCKETS
from tests.training.test_training_loop import made_data, normal

from likeness.config.losses import IdentitySettings
from likeness.errors import UserError
from likeness.tables import LOG, SAMPLE_FACES, read_rows, write_table
from likeness.training.buckets import cover_and_crop, to_bucket
from likeness.training.data import Batch, Sample
from likeness.training.losses.identity import (
    align,
    decode,
    embed_face,
    locate,
    make_identity_loss,
    read_recogniser,
    targets_of,
)
from likeness.training.losses.objective import Seen
from likeness.training.train import train_lora

CPU = torch.device("cpu")
TURN = np.deg2rad(20)


@pytest.fixture(scope="session")
def recogniser_path(tmp_path_factory):
    """Convolution, PReLU, flatten and a linear layer, as in a real recogniser, with 112 px crops and 16 values."""
    rng = np.random.default_rng(5)
    sizes = {
        "w1": (6, 3, 7, 7),
        "b1": (6,),
        "slope": (6, 1, 1),
        "w2": (8, 6, 5, 5),
        "b2": (8,),
        "w3": (16, 8 * 49),
        "b3": (16,),
    }
    weights = [
        numpy_helper.from_array((rng.standard_normal(size) / np.sqrt(np.prod(size[1:]) or 1)).astype(np.float32), name)
        for name, size in sizes.items()
    ]
    nodes = [
        helper.make_node(
            "Conv", ["input.1", "w1", "b1"], ["c1"], kernel_shape=[7, 7], strides=[4, 4], pads=[3, 3, 3, 3]
        ),
        helper.make_node("PRelu", ["c1", "slope"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], kernel_shape=[5, 5], strides=[4, 4], pads=[2, 2, 2, 2]),
        helper.make_node("Flatten", ["c2"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w3", "b3"], ["embedding"], transB=1),
    ]
    given = helper.make_tensor_value_info("input.1", TensorProto.FLOAT, ["n", 3, 112, 112])
    made = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", 16])
    graph = helper.make_graph(nodes, "recogniser", [given], [made], weights)
    path = tmp_path_factory.mktemp("recogniser") / "recogniser.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=8), path)
    return path


def landmarks(x: float, y: float, scale: float, turn: float = TURN) -> np.ndarray:
    """The template's five points around (x, y), turned."""
    turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return ((arcface_dst - 56) * scale) @ turned.T + (x, y)


def picture(width: int, height: int) -> np.ndarray:
    coarse = np.random.default_rng(2).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize("scale", [0.6, 1.7])
def test_the_warp_is_insightfaces(scale):
    pixels = picture(200, 160)
    points = landmarks(90, 85, scale)
    expected = norm_crop(pixels, points.astype(np.float32), 112)
    face = locate(points, (10, 13), 112, 16)
    top, left = face.rows[0] * 16, face.columns[0] * 16
    region = (
        torch.from_numpy(pixels.copy())
        .permute(2, 0, 1)
        .float()[:, top : face.rows[1] * 16, left : face.columns[1] * 16]
    )
    found = align(region, face.to_region_23, 112).permute(1, 2, 0).numpy()
    difference = np.abs(found - expected.astype(float))
    assert difference.mean() < 0.5 and np.percentile(difference, 99) < 2


def test_embeddings_are_those_of_insightface(recogniser_path):
    reference = ArcFaceONNX(model_file=str(recogniser_path))
    crop = picture(112, 112)
    theirs = reference.get_feat(crop[..., ::-1].copy())[0]
    own = read_recogniser(recogniser_path, CPU).embed(torch.from_numpy(crop.copy()).permute(2, 0, 1)[None].float())[0]
    assert float(own @ torch.from_numpy(theirs / np.linalg.norm(theirs))) > 0.9999
    assert own.norm().item() == pytest.approx(1, abs=1e-5)


def face_world(recogniser_path, **changes):
    """Three samples of 8×8 tokens (32 px) with a face, one without, and the loss made for them."""
    settings = IdentitySettings.model_validate({"model": str(recogniser_path), "min_similarity": -1, **changes})
    samples = []
    for index in range(4):
        places = None if index == 3 else landmarks(15 + index, 16, 0.2)
        plain = torch.ones(64)
        latents = normal(index, "latents", shape=(64, 16))
        samples.append(
            Sample(
                f"{index:064x}",
                1,
                ((8, 8), ()),
                latents,
                torch.zeros(0, 16),
                torch.zeros(12, 96),
                plain,
                0 * plain,
                None,
                places,
            )
        )
    data = made_data(samples)
    vae = tiny_vae()
    vae.requires_grad_(False)
    return data, vae, make_identity_loss(settings, data, vae)


def seen_of(data, predicted=None, sigma=0.4) -> Seen:
    ids = sorted(data.samples)
    batch: Batch = data.batch(ids, [False] * len(ids))
    noise = normal("noise", shape=tuple(batch.latents_BLC.shape))
    predicted = noise - batch.latents_BLC if predicted is None else predicted
    return Seen(None, batch, noise, (sigma,) * len(ids), predicted)


def test_the_true_image_has_no_distance_to_its_own_face(recogniser_path):
    data, _, loss = face_world(recogniser_path, target="own")
    assert loss(seen_of(data)).abs().max() < 1e-4
    off = loss(seen_of(data, normal("other", shape=(4, 64, 16))))
    assert off[:3].min() > 1e-3 and off[3] == 0, "a sample without a face counts as nothing"


def test_the_gradient_is_the_finite_difference(recogniser_path):
    data, _, loss = face_world(recogniser_path, target="own")
    predicted = normal("other", shape=(4, 64, 16)).requires_grad_()
    loss(seen_of(data, predicted)).sum().backward()
    direction = predicted.grad / predicted.grad.norm()
    step = 2e-2
    with torch.no_grad():
        ends = [loss(seen_of(data, predicted + sign * step * direction)).sum().item() for sign in (1, -1)]
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(predicted.grad.norm().item(), rel=0.05)
    assert predicted.grad[3].abs().max() == 0


def test_only_the_region_around_the_face_is_decoded_and_learned(recogniser_path):
    _, vae, loss = face_world(recogniser_path)
    wide = locate(landmarks(100, 90, 0.3), (40, 60), 112, 4)
    assert 0 < wide.rows[0] < wide.rows[1] < 40 and 0 < wide.columns[0] < wide.columns[1] < 60
    clean = normal("clean", shape=(16, 40, 60)).requires_grad_()
    embed_face(vae, loss.recogniser, clean, wide).square()[:8].sum().backward()
    inside = clean.grad[:, wide.rows[0] : wide.rows[1], wide.columns[0] : wide.columns[1]]
    assert inside.abs().sum() > 0 and torch.equal(inside.abs().sum(), clean.grad.abs().sum())
    assert decode(vae, clean.detach()).shape == (3, 160, 240)


def test_a_face_that_is_none_yet_does_not_count(recogniser_path):
    data, _, loss = face_world(recogniser_path, target="own", min_similarity=0.999999)
    predicted = normal("other", shape=(4, 64, 16)).requires_grad_()
    values = loss(seen_of(data, predicted))
    assert values.abs().max() == 0
    values.sum().backward()
    assert predicted.grad.abs().max() == 0


def test_others_leave_the_photo_itself_out():
    own = {name: torch.nn.functional.normalize(normal(name, shape=(8,)), dim=0) for name in "abc"}
    found = targets_of(own, "others")
    assert torch.allclose(found["a"], torch.nn.functional.normalize(own["b"] + own["c"], dim=0), atol=1e-6)
    assert targets_of(own, "own") == own
    assert targets_of({"a": own["a"]}, "others") == {"a": own["a"]}


def test_landmarks_take_the_same_way_as_pixels():
    pixels = np.zeros((90, 140, 3), np.uint8)
    cv2.circle(pixels, (80, 40), 9, (255, 255, 255), -1)
    size = (48, 64)
    rows, columns = np.nonzero(cover_and_crop(pixels, size)[..., 0] > 127)
    assert to_bucket([80, 40], (140, 90), size) == pytest.approx([columns.mean(), rows.mean()], abs=0.3)


def faces_of(world, skipped: int = 0) -> None:
    """The subject's face in each photo but the last `skipped`, and that of a photo that is not trained on."""
    rows = []
    for row in read_rows(world.images)[: -skipped or None]:
        points = landmarks(row["width_px"] / 2, row["height_px"] / 2, 0.2)
        rows.append(face_row(row["sha256"], points))
    world.faces = [world.root / "faces.parquet"]
    write_table(world.faces[0], SAMPLE_FACES, [*rows, face_row("0" * 64, landmarks(10, 10, 0.05))])


def face_row(image_sha256: str, points: np.ndarray) -> dict[str, Any]:
    box = [*points.min(axis=0).tolist(), *points.max(axis=0).tolist()]
    return {"image_sha256": image_sha256, "box": box, "landmarks": points.ravel().tolist()}


def train(world, out="out", **losses):
    stage = world.train_stage(steps=2, losses=losses)
    return train_lora(stage, world.manifest, world.encoded, None, world.store, world.root / out)


def test_faces_reach_the_training_and_count_only_where_they_are_read(photo_world, recogniser_path, caplog):
    world = photo_world
    faces_of(world, skipped=1)
    world.encode()
    rows = {row["width_px"] / row["height_px"]: row for row in read_rows(world.encoded) if row["landmarks"]}
    assert len([row for row in read_rows(world.encoded) if row["landmarks"]]) == 4
    square = np.array(rows[1.0]["landmarks"]).reshape(5, 2)
    assert np.allclose(square.mean(axis=0), BUCKETS.resolution_px / 2, atol=4)
    identity = {"model": str(recogniser_path), "min_similarity": -1, "sigma_max": 1.0}
    assert train(world, identity=identity, velocity={"face_weight": 2.0}).computed == 2
    assert "1 of 5 samples have no face for the identity loss" in caplog.text
    log = read_rows(world.root / "out/log.parquet", LOG)
    assert any(0 < row["loss_identity"] < 2 for row in log)
    assert log[0]["loss"] == pytest.approx(log[0]["loss_velocity"] + 0.1 * log[0]["loss_identity"])
    assert train(world, "plain").computed == 2
    faces_of(world, skipped=2)
    world.encode()
    assert train(world, "plain").computed == 0, "faces that no loss reads change nothing"
    assert train(world, "again", identity=identity, velocity={"face_weight": 2.0}).computed == 2
    moved = world.root / "moved.onnx"
    moved.write_bytes(recogniser_path.read_bytes())
    elsewhere = {**identity, "model": str(moved)}
    assert train(world, "moved", identity=elsewhere, velocity={"face_weight": 2.0}).computed == 0


def test_no_face_or_no_recogniser_is_an_error(photo_world, recogniser_path):
    photo_world.encode()
    with pytest.raises(UserError, match="no sample has a face"):
        train(photo_world, identity={"model": str(recogniser_path)})
    faces_of(photo_world)
    photo_world.encode()
    with pytest.raises(UserError, match=r"nowhere\.onnx is no file"):
        train(photo_world, identity={"model": "nowhere.onnx"})
