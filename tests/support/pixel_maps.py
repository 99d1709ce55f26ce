"""Baked maps that are known to the pixel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from neural_fields.atlas.uv_maps import Maps
from neural_fields.core.box import Box
from tests.support.map_arrays import save_map

WIDTH, HEIGHT = 96, 64


def pixel_maps(home: Path, offsets: Sequence[np.ndarray | float], weights: np.ndarray | None = None) -> Maps:
    """Makes maps whose uv are pixels, less an offset to the right.

    Args:
        home: an empty folder.
        offsets: of each frame, in pixels: a number, or one for each pixel.
        weights: of the layers, front to back, in each frame; by default there is one layer.
    """
    weights = np.ones((len(offsets), 1, HEIGHT, WIDTH)) if weights is None else weights
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    uv = np.stack([np.stack([x - offset, y], axis=-1) for offset in offsets]).astype(np.float32)
    names = tuple(f"layer {number}" for number in range(weights.shape[1]))
    for name in names:
        save_map(home, f"uv-{name}", np.pad(uv, ((0, 0), (1, 1), (1, 1), (0, 0)), "edge"))
    rimmed = np.pad(weights, ((0, 0), (0, 0), (1, 1), (1, 1)), "edge")
    save_map(home, "weight", np.round(255 * rimmed).astype(np.uint8))
    box = Box(-200.0, -200.0, 200.0, 200.0)
    return Maps(home, names, (box,) * len(names), (WIDTH, HEIGHT), len(offsets), False)
