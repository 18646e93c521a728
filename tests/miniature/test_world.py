"""The drawn world: what it says of its pictures is true of their pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from likeness.captions.facts import BACKGROUND_COLOURS
from likeness.miniature.world import (
    IDENTITY_FIELDS,
    facts_of,
    render,
    render_group,
    sample_identities,
    sample_scenes,
)


def people(n: int, seed: int = 0, framing: str = "close"):
    rng = np.random.default_rng(seed)
    return sample_identities(n, rng), sample_scenes(n, rng, framing)


def test_drawing_is_a_function_of_its_arguments():
    identities, scenes = people(4)
    first, second = render(identities, scenes, 32, 48), render(identities, scenes, 32, 48)
    assert first.images_NHWC.shape == (4, 32, 48, 3) and first.images_NHWC.dtype == np.float32
    assert np.array_equal(first.images_NHWC, second.images_NHWC)
    again, _ = people(4)
    assert np.array_equal(identities, again) and identities.shape == (4, len(IDENTITY_FIELDS))


def test_one_of_a_batch_looks_as_it_does_alone():
    identities, scenes = people(5)
    together = render(identities, scenes, 64, 64).images_NHWC[3]
    alone = render(identities[3:4], scenes.take(3), 64, 64).images_NHWC[0]
    assert np.abs(together - alone).max() < 1e-5


@pytest.mark.parametrize("framing", ["close", "half", "full"])
def test_masks_nest_and_hold_the_landmarks(framing):
    identities, scenes = people(24, 1, framing)
    drawn = render(identities, scenes, 256, 256)
    assert not (drawn.face_NHW & ~drawn.head_NHW).any() and not (drawn.head_NHW & ~drawn.person_NHW).any()
    for face, landmarks in zip(drawn.face_NHW, drawn.landmarks_N52, strict=True):
        near = ndimage.binary_dilation(face, iterations=2)
        x, y = landmarks.astype(int).T
        assert near[y, x].all()
    assert (drawn.landmarks_N52[:, 0, 0] < drawn.landmarks_N52[:, 1, 0]).all()
    assert (drawn.landmarks_N52[:, 3, 0] < drawn.landmarks_N52[:, 4, 0]).all()


def test_clothes_change_nothing_inside_the_head_and_background_nothing_inside_the_person():
    identities, scenes = people(6, 2)
    plain = render(identities, scenes.change(clothes_rgb=[0.1, 0.1, 0.9]), 96, 96)
    dressed = render(identities, scenes.change(clothes_rgb=[0.9, 0.9, 0.1]), 96, 96)
    elsewhere = render(identities, scenes.change(clothes_rgb=[0.1, 0.1, 0.9]).with_background("red"), 96, 96)
    moved = np.abs(plain.images_NHWC - dressed.images_NHWC).max(-1)
    inside = np.stack([ndimage.binary_erosion(mask, iterations=2) for mask in plain.head_NHW])
    assert moved[inside].max() < 1e-6 and moved.max() > 0.3
    solid = np.stack([ndimage.binary_erosion(mask, iterations=2) for mask in plain.person_NHW])
    assert np.abs(plain.images_NHWC - elsewhere.images_NHWC)[solid].max() < 1e-6


def test_boxes_are_those_of_the_bare_oval():
    identities, scenes = people(8, 3)
    identities[:, IDENTITY_FIELDS.index("glasses")] = 0  # they belong to the face and may stand out beside it
    drawn = render(identities, scenes, 256, 256)
    for box, face in zip(drawn.boxes_N4, drawn.face_NHW, strict=True):
        rows, columns = np.flatnonzero(face.any(1)), np.flatnonzero(face.any(0))
        # Hair covers the upper edge alone, so the other three are the mask's own.
        assert (
            abs(rows[-1] + 1 - box[3]) < 2.5 and abs(columns[0] - box[0]) < 2.5 and abs(columns[-1] + 1 - box[2]) < 2.5
        )
        assert box[1] <= rows[0]


def test_a_small_drawing_is_the_large_one_averaged():
    identities, scenes = people(16, 4)
    small = render(identities, scenes, 16, 16).images_NHWC
    large = render(identities, scenes, 256, 256).images_NHWC.reshape(16, 16, 16, 16, 16, 3).mean((2, 4))
    assert np.abs(small - large).mean() < 0.02


def test_the_same_person_stays_alike_and_others_differ():
    """Skin measured on the cheeks of the picture is the identity's own, whatever the scene's background and clothes."""
    identities, _ = people(6, 5)
    identities[:, IDENTITY_FIELDS.index("beard")] = 0
    _, scenes = people(6, 6)
    plain = scenes.change(yaw_deg=0, roll_deg=0, light_strength=0, brightness=1, light_temperature=0)
    drawn = render(identities, plain, 256, 256)
    for image, face, identity in zip(drawn.images_NHWC, drawn.face_NHW, identities, strict=True):
        assert np.abs(np.median(image[face], axis=0) - identity[:3]).max() < 0.05


@settings(max_examples=30, deadline=None)
@given(st.floats(-35, 35), st.floats(-1, 1), st.floats(0, 1), st.floats(0.3, 1.1), st.floats(0.1, 0.7))
def test_facts_follow_the_scene(yaw_deg, direction, strength, brightness, scale):
    _, scenes = people(1)
    scene = scenes.change(
        yaw_deg=yaw_deg, light_direction=direction, light_strength=strength, brightness=brightness, scale=scale
    )
    facts = facts_of(scene, 0)
    assert (facts.pose == "front") == (abs(yaw_deg) <= 12) and (facts.pose == "left") == (yaw_deg < -12)
    assert (facts.light == "dim") == (brightness < 0.65)
    assert facts.framing == ("close" if scale > 0.33 else "half" if scale >= 0.14 else "full")
    assert facts.background in BACKGROUND_COLOURS


def test_light_and_pose_are_those_that_the_viewer_sees():
    identities, scenes = people(1, 7)
    still = scenes.change(yaw_deg=0, roll_deg=0, smile=0, centre_x=0.5, light_strength=0.9, brightness=0.9)
    left_lit = render(identities, still.change(light_direction=-1), 64, 64)
    face, columns = left_lit.face_NHW[0], np.arange(64)[None, :]
    image = left_lit.images_NHWC[0].mean(-1)
    assert image[face & (columns < 32)].mean() > 1.2 * image[face & (columns >= 32)].mean()
    turned = [render(identities, still.change(yaw_deg=yaw), 64, 64).landmarks_N52[0, 2, 0] for yaw in (-25, 0, 25)]
    assert turned[0] < turned[1] - 2 and turned[2] > turned[1] + 2


def test_a_group_shows_each_person_once_and_the_nearer_in_front():
    identities, scenes = people(3, 8, "half")
    scenes = scenes.change(centre_x=[0.3, 0.42, 0.8], scale=[0.2, 0.28, 0.2])
    group = render_group(identities, scenes, 200, 300)
    assert group.images_NHWC.shape == (1, 200, 300, 3) and group.person_NHW.shape == (3, 200, 300)
    assert (group.person_NHW.sum(0) <= 1).all()
    alone = render(identities, scenes, 200, 300)
    assert np.array_equal(group.person_NHW[1], alone.person_NHW[1])
    assert group.person_NHW[0].sum() < alone.person_NHW[0].sum()
