"""Order of candidates and pose from landmarks; oracle: a rigid 3D head turned and projected by scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from likeness.faces.detector import Face, Pose
from likeness.faces.select import clipped, ordered, pose_from_landmarks, pose_of, without_doubles

# Eyes, nose tip and mouth corners of a frontal head in eye distances: x right, y down, z towards the viewer.
HEAD = np.array([[-0.5, 0, 0], [0.5, 0, 0], [0, 0.495 * 1.155, 0.6], [-0.41, 1.155, 0], [0.41, 1.155, 0]])


def projected(yaw_deg: float = 0, pitch_deg: float = 0, roll_deg: float = 0) -> np.ndarray:
    """Turn the head: positive yaw moves the nose right, positive pitch moves it up, positive roll is clockwise."""
    turn = Rotation.from_euler("z", roll_deg, degrees=True) * Rotation.from_euler("y", yaw_deg, degrees=True)
    turn = turn * Rotation.from_euler("x", pitch_deg, degrees=True)
    return (turn.apply(HEAD)[:, :2] * 60 + 100).astype(np.float32)


def face(*box: float) -> Face:
    return Face((box[0], box[1], box[2], box[3]), None, 0.9)


@pytest.mark.parametrize("yaw", [-35, -20, 0, 10, 30])
def test_yaw_of_a_turned_head(yaw):
    pose = pose_from_landmarks(projected(yaw_deg=yaw))
    assert pose.yaw_deg == pytest.approx(yaw, abs=1.5)
    assert pose.roll_deg == pytest.approx(0, abs=1.5)


@pytest.mark.parametrize("pitch", [-25, -10, 0, 15, 25])
def test_pitch_of_a_nodding_head(pitch):
    assert pose_from_landmarks(projected(pitch_deg=pitch)).pitch_deg == pytest.approx(pitch, abs=3)


@given(st.floats(-80, 80))
def test_roll_is_the_slope_of_the_eyes(roll):
    pose = pose_from_landmarks(projected(roll_deg=roll))
    assert pose.roll_deg == pytest.approx(roll, abs=0.1)
    assert pose.yaw_deg == pytest.approx(0, abs=0.1)


def test_eyes_in_one_point_have_no_pose():
    assert pose_from_landmarks(np.zeros((5, 2), np.float32)) == Pose()


def test_detector_pose_wins_over_landmarks():
    known = Face((0, 0, 9, 9), projected(yaw_deg=30), 0.9, Pose(5.0, 1.0, 2.0))
    assert pose_of(known) == Pose(5.0, 1.0, 2.0)
    assert pose_of(face(0, 0, 9, 9)) == Pose()


def test_large_and_central_first():
    small_central, large_central, large_outside = face(45, 45, 55, 55), face(30, 30, 70, 70), face(0, 0, 40, 40)
    found = ordered([small_central, large_outside, large_central], 100, 100, 8)
    assert [f.box for f in found] == [large_central.box, small_central.box, large_outside.box]
    assert ordered(found, 100, 100, 1) == [large_central]


@given(st.permutations([(10, 10, 20, 20), (10, 80, 20, 90), (80, 10, 90, 20), (40, 40, 60, 60)]))
def test_order_does_not_depend_on_the_detectors_order(boxes):
    found = [f.box for f in ordered([face(*box) for box in boxes], 100, 100, 8)]
    assert found == [(40, 40, 60, 60), (10, 10, 20, 20), (10, 80, 20, 90), (80, 10, 90, 20)]


def test_boxes_are_cut_at_the_border():
    inside = clipped(face(-10, -5, 50, 200), 100, 80)
    assert inside is not None and inside.box == (0, 0, 50, 100)
    assert clipped(face(90, 0, 120, 40), 100, 80) is None


def test_a_box_inside_of_another_is_the_same_face():
    large, inner = Face((10, 10, 60, 60), None, 0.9), Face((20, 20, 45, 45), None, 0.8)
    neighbour, overlapping = Face((70, 10, 120, 60), None, 0.7), Face((45, 10, 95, 60), None, 0.6)
    assert without_doubles([inner, neighbour, large]) == [large, neighbour]
    assert without_doubles([large, overlapping]) == [large, overlapping]
    assert without_doubles([]) == []
