"""Resampling of images at scattered points."""

from __future__ import annotations

import numpy as np
import pytest

from neural_fields.imaging.resampling import sample_area


@pytest.mark.parametrize("side", [1.0, 2.0, np.float64(3.0), 4.5])
def test_sample_of_an_area_is_its_mean(side: float) -> None:
    x, y = np.meshgrid(np.arange(40, dtype=np.float32), np.arange(30, dtype=np.float32))
    ramp = np.stack([x, y], axis=-1)
    at = np.array([10.0, 20.5, 15.25], np.float32), np.array([12.0, 9.5, 15.75], np.float32)
    assert np.allclose(sample_area(ramp, *at, side), np.stack(at, axis=-1), atol=1e-4)
    checkered = ((x + y) % 2).astype(np.float32)
    if side >= 2:
        assert np.abs(sample_area(checkered, *at, side) - 0.5).max() < 0.2
