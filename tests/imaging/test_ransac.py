"""Transforms fitted to matches: the one that most of them follow is found exactly, whatever the others say."""

from __future__ import annotations

import numpy as np
import pytest

from neural_fields.imaging.ransac import find_transform, find_transform_or_identity

TRANSFORMS = {
    "similarity": np.array([[1.1, -0.2, 3.0], [0.2, 1.1, -2.0], [0, 0, 1]]),
    "affine": np.array([[1.1, -0.2, 3.0], [0.4, 0.8, -2.0], [0, 0, 1]]),
    "homography": np.array([[1.1, -0.2, 3.0], [0.4, 0.8, -2.0], [0.002, -0.001, 1]]),
}


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_a_third_of_wrong_matches_does_not_move_the_transform(kind: str) -> None:
    random = np.random.default_rng(0)
    start = random.uniform(0, 100, (90, 2))
    placed = np.column_stack([start, np.ones(90)]) @ TRANSFORMS[kind].T
    end = placed[:, :2] / placed[:, 2:]
    end[:30] = random.uniform(0, 100, (30, 2))
    found = find_transform(start, end, kind, 0.5)
    assert found is not None and np.allclose(found, TRANSFORMS[kind], atol=1e-6)
    assert np.array_equal(find_transform_or_identity(start[:, None], end[:, None], kind, 0.5), found)


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_matches_that_no_transform_fits_give_none_or_the_identity(kind: str) -> None:
    points = np.zeros((8, 2))
    assert find_transform(points, points, kind, 0.5) is None
    assert np.array_equal(find_transform_or_identity(points, points, kind, 0.5), np.eye(3))


@pytest.mark.parametrize(("kind", "count"), [("similarity", 1), ("affine", 2), ("homography", 3)])
def test_too_few_matches_give_none(kind: str, count: int) -> None:
    points = np.random.default_rng(0).uniform(0, 100, (count, 2))
    assert find_transform(points, points + 1, kind, 0.5) is None
    assert find_transform(points[:0], points[:0], kind, 0.5) is None
