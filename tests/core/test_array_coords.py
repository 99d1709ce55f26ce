"""Conversions of NumPy arrays give, bit for bit, what those of tensors give."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neural_fields.core import array_coords, coords
from neural_fields.core.box import Box

BOX = Box(-1.3, -0.7, 1.1, 0.9)


@pytest.mark.parametrize("size", [(854, 480), (31, 97)])
def test_arrays_are_converted_as_tensors_are(size: tuple[int, int]) -> None:
    xy = np.random.default_rng(0).uniform(-50, 900, (40, 3, 2)).astype(np.float32)
    tensor = torch.from_numpy(xy)
    for ours, theirs in (
        (array_coords.normalize_pixels(xy, *size), coords.normalize_pixels(tensor, *size)),
        (array_coords.pixel_centers(*size), coords.pixel_centers(*size)),
        (array_coords.frame_xy(*size), coords.frame_xy(*size)),
        (array_coords.uv_to_texels(xy / 500, BOX, *size), coords.uv_to_texels(tensor / 500, BOX, *size)),
        (array_coords.texel_centers(BOX, *size), coords.texel_centers(BOX, *size)),
    ):
        assert ours.dtype == np.float32 and np.array_equal(ours, theirs.numpy())
