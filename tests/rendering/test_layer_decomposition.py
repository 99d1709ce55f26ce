"""Layer decomposition and removal: what is taken to lie behind a layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from neural_fields.atlas.canonical import CanonicalImage
from neural_fields.rendering.layer_decomposition import background_shares
from neural_fields.rendering.removal_pass import RemovalPass
from tests.support.pixel_maps import HEIGHT, WIDTH, pixel_maps


def test_layers_behind_share_a_hidden_place_as_they_share_its_surroundings() -> None:
    weights = np.zeros((2, 5, 9), np.float32)
    weights[0] = 1  # the nearer layer fills the background, ...
    weights[:, 2, 4] = (0.0, 0.6)  # ... but for the noise of a pixel that a layer in front partly fills
    assert np.allclose(background_shares(weights, weights.sum(axis=0)), [[[1.0]], [[0.0]]])


def test_the_halo_of_a_removed_layer_does_not_color_its_hole(tmp_path: Path) -> None:
    weights = np.zeros((1, 2, HEIGHT, WIDTH), np.float32)
    weights[0, 0, 20:44, 30:60] = 1
    weights[:, 1] = 1 - weights[:, 0]
    frame = np.full((HEIGHT, WIDTH, 3), 100, np.uint8)
    frame[19:45, 29:61] = 160  # the object, and a pixel around it
    maps = pixel_maps(tmp_path, [0.0], weights)
    gray = np.full((8, 8, 4), (100 / 255, 100 / 255, 100 / 255, 1), np.float32)
    pictures = {name: CanonicalImage(gray, maps.boxes[0], name) for name in maps.layers}
    shown = RemovalPass(maps, pictures, {"layer 0": [(lambda t: 1.0, 0.0)]}).render_frame(0, frame)
    assert np.abs(shown[20:44, 30:60].astype(int) - 100).max() <= 1
