"""What SAM 2 is told: prompts hold their kind's true mask on drawn people, and points lie on the right side."""

from __future__ import annotations

import numpy as np
import pytest
from tests.masks.test_grabcut import drawn, face_of

from likeness.faces.detector import Face
from likeness.masks.prompts import prompt_for


@pytest.mark.parametrize("framing", ["close", "half", "full"])
@pytest.mark.parametrize("kind", ["face", "head", "person"])
def test_boxes_hold_the_mask_and_points_are_right(framing, kind):
    rendered = drawn(framing, 12, 5)
    truth, held, right, asked = getattr(rendered, f"{kind}_NHW"), [], 0, 0
    for k in range(12):
        prompt = prompt_for(face_of(rendered, k), kind, 256, 256)
        x0, y0, x1, y1 = prompt.box_4.round().astype(int)
        held.append(truth[k, y0:y1, x0:x1].sum() / truth[k].sum())
        for (x, y), label in zip(prompt.points_P2, prompt.labels_P, strict=True):
            right += int(truth[k, int(y), int(x)] == bool(label))
            asked += 1
    assert np.mean(held) > 0.9
    assert right / asked > 0.9


def test_prompts_beyond_the_picture_are_cut():
    prompt = prompt_for(Face((0, 0, 50, 60), None, 1), "person", 64, 64)
    assert prompt.box_4.tolist() == [0, 0, 64, 64]
    assert len(prompt.points_P2) == len(prompt.labels_P) == 1
