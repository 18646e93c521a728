"""The face packs: loaded by the real insightface, judged on people that training never drew."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from insightface.app import FaceAnalysis
from insightface.utils.face_align import arcface_dst, estimate_norm

from likeness.errors import UserError
from likeness.miniature import degrade, detector, pack, recogniser, world

warnings.filterwarnings("ignore", category=FutureWarning, module="insightface")

PHOTO_PX = 256
SHORT = pack.Effort(detector_steps=2, detector_pictures=2, recogniser_steps=2, recogniser_people=12)


def open_pack(folder: Path) -> Any:
    app = FaceAnalysis(name=str(folder), providers=["CPUExecutionProvider"])
    app.prepare(ctx_id=-1, det_thresh=0.5, det_size=detector.DET_SIZE)
    return app


def enlarged(image: np.ndarray) -> np.ndarray:
    """What evaluation looks at: bytes, enlarged by bicubic interpolation, in OpenCV's order of colours."""
    picture = cv2.resize(degrade.to_uint8(image), (PHOTO_PX, PHOTO_PX), interpolation=cv2.INTER_CUBIC)
    return np.ascontiguousarray(picture[..., ::-1])


def box_iou(a: np.ndarray, b: np.ndarray) -> float:
    inter = np.prod(np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None))
    return float(inter / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - inter))


@dataclass
class Seen:
    """What the real insightface says of drawn pictures against the truth; embeddings are NaN where no face was found."""

    found: np.ndarray
    iou: np.ndarray
    landmark_error: np.ndarray
    embeddings: np.ndarray
    faces: np.ndarray


def look(app: Any, identities: np.ndarray, scene: world.Scene, drawn_px: int) -> Seen:
    drawn = world.render(identities, scene, drawn_px, drawn_px)
    rows = []
    for k, image in enumerate(drawn.images_NHWC):
        box, points = drawn.boxes_N4[k] * PHOTO_PX / drawn_px, drawn.landmarks_N52[k] * PHOTO_PX / drawn_px
        faces = app.get(enlarged(image))
        best = max(faces, key=lambda face: box_iou(face.bbox, box), default=None)
        if best is None or box_iou(best.bbox, box) < 0.3:
            rows.append((False, 0.0, np.inf, np.full(app.models["recognition"].output_shape[1], np.nan), len(faces)))
            continue
        error = np.hypot(*(best.kps - points).T).mean() / (box[2] - box[0])
        rows.append((True, box_iou(best.bbox, box), error, best.normed_embedding, len(faces)))
    return Seen(*(np.array(column) for column in zip(*rows, strict=True)))


def cosines(a: Seen, b: Seen) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of the same people (N,) and of different ones, among faces that were found."""
    matrix = a.embeddings @ b.embeddings.T
    same, different = np.diag(matrix), matrix[~np.eye(len(matrix), dtype=bool)]
    return same[~np.isnan(same)], different[~np.isnan(different)]


def mixed_scenes(count: int, rng: np.random.Generator) -> list[world.Scene]:
    return [world.sample_scenes(count, rng, framing) for framing in ("close", "half", "full")]


def test_files_are_routed_by_their_shapes(untrained_pack: Path) -> None:
    for name, width in ((pack.PACK_NAME, 64), (pack.EVALUATION_PACK_NAME, 96)):
        app = open_pack(untrained_pack / name)
        assert sorted(app.models) == ["detection", "recognition"]
        assert len(app.det_model.output_names) == 9
        assert (app.models["recognition"].input_mean, app.models["recognition"].input_std) == (127.5, 127.5)
        aligned = np.zeros((recogniser.CROP_PX, recogniser.CROP_PX, 3), np.uint8)
        assert app.models["recognition"].get_feat(aligned).shape == (1, width)
    same_detector = {
        (untrained_pack / name / pack.DETECTOR_FILE).read_bytes()
        for name in (pack.PACK_NAME, pack.EVALUATION_PACK_NAME)
    }
    assert len(same_detector) == 1


def test_detector_file_agrees_with_torch(untrained_pack: Path) -> None:
    model = detector.train_detector(seed=0, steps=0)
    session = open_pack(untrained_pack / pack.PACK_NAME).det_model.session
    height, width = 96, 160
    images = np.random.default_rng(0).normal(size=(1, 3, height, width)).astype(np.float32)
    with torch.no_grad():
        answer = model.pyramid(torch.from_numpy(images))
    got = session.run(None, {"input.1": images})
    expected = (torch.sigmoid(answer.scores[0])[:, None], answer.boxes[0], answer.landmarks[0])
    for part, wanted in enumerate(expected):
        for anchor in (0, 1):
            joined = np.concatenate([level[anchor::2] for level in got[3 * part : 3 * part + 3]])
            np.testing.assert_allclose(joined, wanted.numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "design"), [(pack.PACK_NAME, recogniser.CURATION), (pack.EVALUATION_PACK_NAME, recogniser.EVALUATION)]
)
def test_recogniser_file_agrees_with_torch(untrained_pack: Path, name: str, design: recogniser.Design) -> None:
    model = recogniser.train_recogniser(design, seed=0, steps=0)
    crops = np.random.default_rng(0).uniform(-1, 1, (3, 3, recogniser.CROP_PX, recogniser.CROP_PX)).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(crops)).numpy()
    session = open_pack(untrained_pack / name).models["recognition"].session
    np.testing.assert_allclose(session.run(None, {"input.1": crops})[0], expected, atol=1e-4)


def test_alignment_agrees_with_insightface() -> None:
    np.testing.assert_array_equal(recogniser.TEMPLATE_52, arcface_dst)
    rng = np.random.default_rng(3)
    for _ in range(20):
        landmarks = (arcface_dst * rng.uniform(0.3, 3) + rng.normal(0, 6, (5, 2)) + rng.uniform(-50, 50, 2)).astype(
            np.float32
        )
        np.testing.assert_allclose(recogniser.similarity_to_template(landmarks), estimate_norm(landmarks), atol=1e-3)


def test_coarser_strides_see_the_halved_picture() -> None:
    # Oracle: OpenCV's area resize, which averages blocks just so when it halves.
    model = detector.train_detector(seed=0, steps=0)
    image = np.random.default_rng(1).normal(size=(96, 96, 3)).astype(np.float32)
    halved = cv2.resize(image, (48, 48), interpolation=cv2.INTER_AREA)
    with torch.no_grad():
        whole = model.pyramid(torch.from_numpy(image.transpose(2, 0, 1)[None]))
        small = model(torch.from_numpy(halved.transpose(2, 0, 1)[None]))
    np.testing.assert_allclose(whole.landmarks[0, 144 : 144 + 36].numpy(), small.landmarks[0].numpy(), atol=1e-5)


def example_with_face(height: float, visible: float = 1.0) -> detector.Example:
    box = np.array([[24 - 0.4 * height, 24 - height / 2, 24 + 0.4 * height, 24 + height / 2]])
    image = np.zeros((detector.WINDOW_PX, detector.WINDOW_PX, 3), np.uint8)
    return detector.Example(image, box, np.full((1, 5, 2), 24.0), np.array([visible]))


def test_cells_answer_for_visible_faces_of_a_fitting_size_only() -> None:
    wanted, index = detector.assign(example_with_face(24.0))
    assert (wanted > 0).any()
    assert wanted.max() == 1
    assert set(index[wanted > 0]) == {0}
    assert 0.8 < detector.assign(example_with_face(9.0))[0].max() < 1
    for asked_nothing in (example_with_face(24.0, visible=0.2), example_with_face(7.0), example_with_face(40.0)):
        wanted, index = detector.assign(asked_nothing)
        assert wanted.max() == 0
        assert (wanted == -1).any()
        assert (index == -1).all()
    for background in (example_with_face(5.0), example_with_face(46.0)):
        assert not detector.assign(background)[0].any()


def test_windows_carry_their_truth() -> None:
    # A white disc marks the place: its centroid must stay at the landmarks, and mirroring must keep left on the left.
    rng, compared = np.random.default_rng(0), 0
    for _ in range(60):
        centre = rng.uniform(30, 66, 2)
        rows, columns = np.mgrid[:96, :96] + 0.5
        image = np.repeat((np.hypot(columns - centre[0], rows - centre[1]) < 6)[..., None] * np.uint8(255), 3, 2)
        points = centre + np.array([[-3, 0], [3, 0], [0, 0], [-3, 0], [3, 0]])
        box = np.concatenate([centre - 12, centre + 12])[None]
        window = detector.vary(detector.Example(image, box, points[None], np.ones(1)), rng)
        eyes = window.landmarks[0]
        assert eyes[0, 0] < eyes[1, 0]
        if window.visible[0] < 0.99:
            continue
        weight = window.image.mean(2) * (window.image.mean(2) > 60)
        rows, columns = np.mgrid[: detector.WINDOW_PX, : detector.WINDOW_PX] + 0.5
        found = np.array([(columns * weight).sum(), (rows * weight).sum()]) / weight.sum()
        np.testing.assert_allclose(found, eyes[2], atol=0.6)
        compared += 1
    assert compared >= 20


def test_no_answer_is_better_than_the_truth() -> None:
    generator = torch.Generator().manual_seed(0)
    wanted = torch.tensor([[1.0, 0.0, -1.0]])
    boxes, landmarks = torch.full((1, 3, 4), 1.5), torch.zeros(1, 3, 10)
    truth = detector.Answer(wanted, boxes, landmarks)
    right = detector.detection_loss(detector.Answer(torch.tensor([[9.0, -9.0, 0.0]]), boxes, landmarks), truth)
    assert 0 <= float(right) < 0.01
    for _ in range(200):
        logits, sides, points = (
            torch.randn(shape, generator=generator) * 4 for shape in ((1, 3), (1, 3, 4), (1, 3, 10))
        )
        assert float(detector.detection_loss(detector.Answer(logits, sides, points), truth)) > float(right)


def test_an_empty_scene_holds_nobody() -> None:
    rng = np.random.default_rng(0)
    drawn = world.render(world.sample_identities(3, rng), detector.empty_scenes(world.sample_scenes(3, rng)), 64, 64)
    assert not drawn.person_NHW.any()


def test_short_builds_repeat_to_the_bit(tmp_path: Path) -> None:
    first, second = (pack.build_pack(tmp_path / name, seed=5, effort=SHORT) for name in ("a", "b"))
    other = pack.build_pack(tmp_path / "c", seed=6, effort=SHORT)
    assert first == second
    assert (tmp_path / "a" / pack.MANIFEST_NAME).read_bytes() == (tmp_path / "b" / pack.MANIFEST_NAME).read_bytes()
    assert not set(first.values()) & set(other.values())


def test_manifest_names_every_file_and_nothing_is_left_behind(untrained_pack: Path) -> None:
    manifest = json.loads((untrained_pack / pack.MANIFEST_NAME).read_text())
    assert manifest["files"] == pack.manifest_of(untrained_pack)
    assert list(manifest["files"]) == sorted(manifest["files"])
    assert len(manifest["files"]) == 4
    assert [path.name for path in untrained_pack.parent.iterdir()] == [untrained_pack.name]


def test_foreign_folders_are_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "holiday" / "photo.jpg"
    precious.parent.mkdir()
    precious.write_bytes(b"photo")
    with pytest.raises(UserError, match="not made by this program"):
        pack.build_pack(precious.parent, effort=pack.UNTRAINED)
    assert precious.read_bytes() == b"photo"


def test_unknown_parts_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'sam'.*did you mean 'sam2'"):
        pack.build_parts(tmp_path / "x", parts=("sam",))


def judged(same: np.ndarray, different: np.ndarray, threshold: float) -> tuple[float, float]:
    """Share of pairs of one person that a threshold refuses, and of different people that it accepts."""
    return float((same < threshold).mean()), float((different >= threshold).mean())


def rank_one(a: Seen, b: Seen) -> float:
    """Share of b's pictures whose nearest picture of a shows the same person."""
    return float((np.nan_to_num(a.embeddings @ b.embeddings.T, nan=-1).argmax(0) == np.arange(len(b.found))).mean())


@pytest.mark.slow
@pytest.mark.parametrize("name", [pack.PACK_NAME, pack.EVALUATION_PACK_NAME])
def test_photos_are_found_and_told_apart(trained_pack: Path, name: str) -> None:
    app = open_pack(trained_pack / name)
    rng = np.random.default_rng(1001)
    people = world.sample_identities(40, rng)
    known = look(app, people, world.sample_scenes(40, rng, "close"), PHOTO_PX)
    for scene, landmark_error, least_rank_one in zip(
        mixed_scenes(40, rng), (0.055, 0.075, 0.15), (0.9, 0.9, 0.75), strict=True
    ):
        seen = look(app, people, scene, PHOTO_PX)
        same, different = cosines(known, seen)
        assert seen.found.mean() >= 0.95
        assert np.median(seen.iou) >= 0.78
        assert seen.faces.mean() <= 1.2
        assert np.median(seen.landmark_error) <= landmark_error
        assert rank_one(known, seen) >= least_rank_one
        assert same.mean() >= 0.85
        assert abs(different.mean()) <= 0.08
        refused, accepted = judged(same, different, 0.5)
        assert refused <= 0.05
        assert accepted <= 0.09


@pytest.mark.slow
@pytest.mark.parametrize("drawn_px", [16, 24])
@pytest.mark.parametrize("name", [pack.PACK_NAME, pack.EVALUATION_PACK_NAME])
def test_small_samples_are_found_and_recognised(trained_pack: Path, name: str, drawn_px: int) -> None:
    app = open_pack(trained_pack / name)
    rng = np.random.default_rng(1002)
    people = world.sample_identities(40, rng)
    photos = look(app, people, world.sample_scenes(40, rng, "close"), PHOTO_PX)
    samples = look(app, people, world.sample_scenes(40, rng, "close"), drawn_px)
    same, different = cosines(photos, samples)
    assert samples.found.mean() >= 0.95
    assert np.median(samples.landmark_error) <= 0.075
    assert rank_one(photos, samples) >= 0.85
    assert same.mean() >= 0.85
    assert abs(different.mean()) <= 0.08
    refused, accepted = judged(same, different, 0.5)
    assert refused <= 0.05
    assert accepted <= 0.09


@pytest.mark.slow
def test_nobody_is_seen_on_empty_backgrounds_and_groups_are_counted(trained_pack: Path) -> None:
    app = open_pack(trained_pack / pack.PACK_NAME)
    rng = np.random.default_rng(1003)
    empty = world.render(
        world.sample_identities(60, rng), detector.empty_scenes(world.sample_scenes(60, rng)), PHOTO_PX, PHOTO_PX
    )
    assert np.mean([len(app.get(enlarged(image))) == 0 for image in empty.images_NHWC]) >= 0.96
    hits, people_drawn = 0, 0
    for _ in range(15):
        people = int(rng.integers(2, 4))
        drawn = world.render_group(
            world.sample_identities(people, rng), detector.group_scene(people, rng), PHOTO_PX, PHOTO_PX
        )
        faces = app.get(enlarged(drawn.images_NHWC[0]))
        hits += sum(any(box_iou(face.bbox, box) > 0.3 for face in faces) for box in drawn.boxes_N4)
        people_drawn += people
    assert hits / people_drawn >= 0.9
