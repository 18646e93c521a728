"""Buckets: sizes and assignment against brute force, resizing against Pillow."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from likeness.config.training import BucketSettings
from likeness.errors import UserError
from likeness.training.buckets import assign_bucket, bucket_sizes, cover_and_crop


def test_known_buckets_of_1024_px():
    sizes = bucket_sizes(BucketSettings(), 16)
    assert (1024, 1024) in sizes and (896, 1152) in sizes and (1152, 896) in sizes
    assert all(width % 64 == 0 and height % 64 == 0 for width, height in sizes)
    assert max(width / height for width, height in sizes) <= 2.0


@given(
    resolution=st.integers(16, 2048),
    step=st.sampled_from([1, 2, 8, 24, 32, 64]),
    token=st.sampled_from([2, 4, 16]),
    aspect=st.floats(1, 4),
)
@settings(max_examples=100, deadline=None)
def test_every_bucket_keeps_its_promises(resolution, step, token, aspect):
    chosen = BucketSettings(resolution_px=resolution, bucket_step_px=step, max_aspect=aspect)
    multiple = np.lcm(step, token)
    if multiple > resolution:
        with pytest.raises(UserError, match="Lower bucket_step_px"):
            bucket_sizes(chosen, token)
        return
    sizes = bucket_sizes(chosen, token)
    assert len(set(sizes)) == len(sizes) > 0
    for width, height in sizes:
        assert width % multiple == 0 and height % multiple == 0
        assert max(width / height, height / width) <= aspect or width == height
        assert (height, width) in sizes
        # Rounding one side to the step moves the area by at most half a step times the other side.
        assert abs(width * height - resolution**2) <= multiple * (max(width, height) + multiple)


@given(width=st.integers(10, 5000), height=st.integers(10, 5000))
@settings(max_examples=60, deadline=None)
def test_the_bucket_of_nearest_aspect_is_assigned(width, height):
    sizes = bucket_sizes(BucketSettings(resolution_px=512, bucket_step_px=32), 16)
    chosen = assign_bucket(width, height, sizes)

    def distance(size):
        ratio = (width / height) / (size[0] / size[1])
        return max(ratio, 1 / ratio)

    assert distance(chosen) <= min(map(distance, sizes)) * (1 + 1e-8)
    assert assign_bucket(height, width, sizes) == chosen[::-1]


def test_shrinking_by_a_whole_factor_averages_areas():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    found = cover_and_crop(pixels, (16, 16))
    blocks = pixels.reshape(16, 4, 24, 4, 3).mean(axis=(1, 3))[:, 4:20]
    assert found.shape == (16, 16, 3)
    assert np.abs(found - blocks).max() <= 0.5 + 1e-6


def test_enlarging_is_bicubic_as_pillow_does_it():
    gradient = np.tile(np.linspace(20, 220, 24).astype(np.uint8), (24, 1))
    found = cover_and_crop(gradient, (48, 48)).astype(float)
    other = np.asarray(Image.fromarray(gradient).resize((48, 48), Image.Resampling.BICUBIC)).astype(float)
    assert np.abs(found - other)[4:-4, 4:-4].max() <= 2


@given(width=st.integers(8, 200), height=st.integers(8, 200), target=st.sampled_from([(16, 16), (32, 16), (16, 48)]))
@settings(max_examples=60, deadline=None)
def test_a_mask_takes_the_way_of_its_photo(width, height, target):
    """A photo whose brightness is its own mask must stay equal to the mask, pixel by pixel."""
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[height // 3 :, : width // 2] = 255
    photo = np.repeat(mask[:, :, None], 3, axis=2)
    small_photo, small_mask = cover_and_crop(photo, target), cover_and_crop(mask, target)
    assert small_mask.shape == target[::-1]
    assert np.abs(small_photo[..., 0].astype(int) - small_mask).max() <= 1
