"""The overlay pass: what it leaves out to save time would not have changed a pixel."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from neural_fields.atlas.canonical import CanonicalImage, Overlay
from neural_fields.core.box import Box
from neural_fields.rendering.overlay_pass import DEFAULTS, OverlayPass
from tests.support.pixel_maps import HEIGHT, WIDTH, pixel_maps


def painted(texels: int) -> Overlay:
    """A square of 10 pixels, with so many texels to a pixel."""
    rgba = np.broadcast_to(np.array((1, 0.2, 0.1, 1), np.float32), (10 * texels, 10 * texels, 4)).copy()
    return Overlay(rgba, Box(30.0, 20.0, 40.0, 30.0))


@pytest.mark.parametrize(("texels", "scale"), [(1, 4), (4, 1), (4, 4)])
def test_margins_around_paint_are_wide_enough(tmp_path: Path, texels: int, scale: int) -> None:
    maps = pixel_maps(tmp_path, [0.0])
    gray = np.full((8, 8, 4), (100 / 255, 100 / 255, 100 / 255, 1), np.float32)
    pictures = {"layer 0": CanonicalImage(gray, maps.boxes[0], "layer 0")}
    frame = np.full((scale * HEIGHT, scale * WIDTH, 3), 100, np.uint8)
    everywhere = replace(DEFAULTS, reach_px=200)
    paint = {"layer 0": painted(texels)}
    shown, whole = (
        OverlayPass(maps, pictures, paint, settings=settings).render_frame(0, frame)
        for settings in (DEFAULTS, everywhere)
    )
    assert (shown != 100).any() and np.array_equal(shown, whole)


def test_a_texel_much_finer_than_the_maps_does_not_slip_through(tmp_path: Path) -> None:
    maps = pixel_maps(tmp_path, [0.0])
    gray = np.concatenate([np.full((8, 8, 3), 100 / 255), np.ones((8, 8, 1))], axis=-1).astype(np.float32)
    pictures = {"layer 0": CanonicalImage(gray, maps.boxes[0], "layer 0")}
    frame = np.full((16 * HEIGHT, 16 * WIDTH, 3), 100, np.uint8)
    rgba = np.zeros((160, 160, 4), np.float32)  # 16 texels to a pixel of the maps
    rgba[72, 72] = (1, 1, 1, 1)  # between the centers of two of them
    paint = {"layer 0": Overlay(rgba, Box(30.0, 20.0, 40.0, 30.0))}
    assert OverlayPass(maps, pictures, paint).render_frame(0, frame).max() > 200
