"""Canonical pictures and overlays are sampled as torch's `grid_sample` samples them, without torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neural_fields.atlas.canonical import CanonicalImage, Overlay, resample_overlay
from neural_fields.core import coords
from neural_fields.core.box import Box
from neural_fields.imaging.alpha import premultiply, unpremultiply

BOX = Box(-0.8, -0.5, 0.9, 0.4)


def make_pixels() -> np.ndarray:
    return np.random.default_rng(3).random((37, 52, 4)).astype(np.float32)


def sample_by_torch(rgba: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """The premultiplied picture over BOX at some positions, transparent outside of it, unpremultiplied."""
    image = torch.from_numpy(premultiply(rgba)).permute(2, 0, 1)[None]
    found = coords.sample_canonical(image, BOX, torch.from_numpy(uv)[None], padding="zeros")[0]
    return unpremultiply(found.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("size", [(52, 37), (120, 90), (33, 21)])
@pytest.mark.parametrize("box", [BOX, Box(-1.0, -0.6, 0.2, 0.7), Box(-0.1, -0.2, 0.05, -0.1)])
def test_an_overlay_is_resampled_bilinearly_and_is_clear_outside_of_its_box(size: tuple[int, int], box: Box) -> None:
    rgba = make_pixels()
    found = resample_overlay(Overlay(rgba, BOX), size, box)
    if box == BOX:  # resized, with averages where it shrinks
        assert size != (52, 37) or np.array_equal(found, rgba)
        return
    expected = sample_by_torch(rgba, coords.texel_centers(box, *size).numpy())
    seen = expected[..., 3] > 1e-3  # colors of what is almost clear are not determined
    np.testing.assert_allclose(found[..., 3], expected[..., 3], atol=1e-5)
    np.testing.assert_allclose(found[seen], expected[seen], atol=1e-3)


def test_a_picture_is_sampled_bilinearly_and_is_clear_outside_of_its_box() -> None:
    smooth = np.indices((37, 52)).sum(0)[..., None] / 90 * np.array([1, 0.5, 0.2, 0.6]) + np.array([0, 0.1, 0.2, 0.3])
    picture = CanonicalImage(smooth.astype(np.float32), BOX, "background")
    uv = np.random.default_rng(5).uniform(-1.1, 1.1, (15, 20, 2)).astype(np.float32)
    found, expected = picture.sample_rgba(uv), sample_by_torch(picture.rgba, uv)
    np.testing.assert_allclose(found, expected, atol=0.02)  # OpenCV before 5 looks positions up in steps of 1/32
    outside = (np.abs(uv - [0.05, -0.05]) > [0.9, 0.5]).any(-1)
    assert outside.any() and not found[outside].any()


@given(st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3)), min_size=0, max_size=6))
def test_a_sample_does_not_depend_on_what_else_is_sampled(points: list[tuple[float, float]]) -> None:
    rgba = np.random.default_rng(0).random((6, 9, 4)).astype(np.float32)
    image = CanonicalImage(rgba, Box(-1.0, -0.7, 1.2, 0.8), "background")
    uv = np.array(points, np.float32).reshape(-1, 2)
    together = image.sample_rgba(uv)
    alone = [image.sample_rgba(point[None])[0] for point in uv]
    assert np.allclose(together, np.reshape(alone, (-1, 4)), atol=1e-5)
    outside = (np.abs(uv - (0.1, 0.05)) > (1.35, 1.0)).any(axis=1)
    assert not together[outside, 3].any()
