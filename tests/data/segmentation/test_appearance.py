"""What pixels look like, and which look like the object."""

from __future__ import annotations

import numpy as np
import pytest

from neural_fields.data.segmentation.appearance_model import AppearanceModel
from neural_fields.data.segmentation.color_features import FEATURE_COUNT, compute_color_features


def test_a_flat_picture_has_its_color_at_all_sizes_and_no_texture() -> None:
    features = compute_color_features(np.full((20, 31, 3), (200, 40, 90), np.uint8))
    assert features.shape == (10, 16, FEATURE_COUNT)
    assert np.allclose(features[..., :3], features[0, 0, :3])
    for blurred in (3, 6, 9):
        assert np.allclose(features[..., blurred : blurred + 3], features[..., :3], atol=1e-5)
    assert features[..., 12:].max() < 1e-3


def test_vertical_stripes_are_edges_to_the_right_and_not_downwards() -> None:
    frame = np.zeros((40, 40, 3), np.uint8)
    frame[:, ::8] = 255
    texture = compute_color_features(frame)[10, 10, 12:16]
    assert texture[0] > 20 * texture[1]


@pytest.mark.parametrize("window", [(slice(30, 71), slice(40, 90)), (slice(0, 20), slice(60, 121))])
def test_features_of_a_window_are_those_of_the_frame(window: tuple[slice, slice]) -> None:
    frame = np.random.default_rng(0).integers(0, 255, (101, 121, 3)).astype(np.uint8)
    rows, columns = (slice(part.start // 2, (part.stop + 1) // 2) for part in window)
    whole = compute_color_features(frame)[rows, columns]
    found = compute_color_features(frame, window=window)
    assert found.shape == whole.shape
    assert np.abs(found - whole).max() < 1e-2  # the widest Gaussians reach a little beyond the margin


def test_pixels_score_as_the_side_that_they_look_like() -> None:
    draw = np.random.default_rng(0)
    frame = draw.integers(0, 60, (60, 80, 3)).astype(np.uint8)
    frame[20:40, 30:50] += np.uint8(120)
    mask = np.zeros((60, 80), bool)
    mask[20:40, 30:50] = True
    features = compute_color_features(frame)
    labels = np.where(mask, 1, -1).astype(np.int8)[::2, ::2]
    model = AppearanceModel({0: features}, {0: labels}, {0: np.ones_like(labels, bool)})
    moved = compute_color_features(np.roll(frame, (8, -14), (0, 1)))
    score = model.score(moved)
    expected = np.roll(mask, (8, -14), (0, 1))[::2, ::2]
    assert score[expected].mean() > 0.8
    assert score[~expected].mean() < -0.8
    assert ((score > 0) == expected).mean() > 0.97
    assert np.abs(score).max() <= model.settings.max_score


def test_what_is_not_said_teaches_nothing() -> None:
    frame = np.zeros((40, 60, 3), np.uint8)
    frame[:, 20:40], frame[:, 40:] = (0, 200, 0), (200, 0, 0)
    labels = np.full((20, 30), -1, np.int8)
    labels[:, 10:20] = 1
    labels[:, 20:] = 0  # red was not said to be anything
    features = compute_color_features(frame)
    model = AppearanceModel({0: features}, {0: labels}, {0: np.ones((20, 30), bool)})
    score = model.score(features)
    assert score[:, 13:17].min() > 0.5 and score[:, 2:8].max() < -0.5
    assert np.abs(score[:, 24:28]).max() < 0.9
