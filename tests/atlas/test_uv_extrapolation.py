"""A uv map beyond the pixels that show its layer: affine, never singular, and none at all from too little."""

from __future__ import annotations

import numpy as np

from neural_fields.atlas.uv_extrapolation import extrapolate_uv

SIZE = 64
Y, X = (np.mgrid[:SIZE, :SIZE] + 0.5).astype(np.float32) / SIZE


def test_fewer_than_a_dozen_pixels_make_no_map() -> None:
    uv, seen = np.stack([X, Y], axis=-1), np.zeros((SIZE, SIZE), bool)
    seen[10:13, 10:14] = True
    assert extrapolate_uv(uv, seen) is not None
    seen[10, 10] = False
    assert extrapolate_uv(uv, seen) is None


def test_far_from_what_is_seen_the_map_is_that_of_all_of_it() -> None:
    uv, seen = np.stack([X + 8 * X * X, Y], axis=-1), np.zeros((SIZE, SIZE), bool)
    seen[:8, :8] = True
    found = extrapolate_uv(uv, seen)
    assert found is not None
    slope, *_ = np.linalg.lstsq(np.c_[X[seen], np.ones(64)], uv[seen][:, 0], rcond=None)
    np.testing.assert_allclose(found.jacobian[-1, -1] * SIZE, [[slope[0], 0], [0, 1]], atol=0.02)
    assert found.jacobian[0, 0, 0, 0] * SIZE < 1.8 and found.jacobian[0, 7, 0, 0] * SIZE > 2.2, "near it, it bends"


def test_where_a_map_is_mirrored_its_slope_is_the_usual_one() -> None:
    fold = 0.6  # left of it u grows, right of it u falls
    uv, seen = np.stack([fold - np.abs(X - fold), Y], axis=-1), np.ones((SIZE, SIZE), bool)
    found = extrapolate_uv(uv, seen)
    assert found is not None and (np.linalg.det(found.jacobian.astype(float)) > 0).all()
    np.testing.assert_allclose(found.uv[:, 20], uv[:, 20], atol=1e-3)
