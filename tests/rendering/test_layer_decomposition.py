"""Layer decomposition and removal: what is taken to lie behind a layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from neural_fields.atlas.canonical import CanonicalImage
from neural_fields.rendering.layer_decomposition import background_shares
from neural_fields.rendering.removal_pass import HiddenShare, RemovalPass
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
    removal = RemovalPass(maps, pictures, {"layer 0": [HiddenShare(lambda t: 1.0)]})
    shown = removal.render_frame(0, frame)
    assert np.abs(shown[20:44, 30:60].astype(int) - 100).max() <= 1


def test_what_is_shown_behind_has_the_grain_of_the_frame(tmp_path: Path) -> None:
    weights = np.zeros((2, 2, HEIGHT, WIDTH), np.float32)
    weights[:, 0, 10:50, 20:60] = 1
    weights[:, 1] = 1 - weights[:, 0]
    random = np.random.default_rng(0)
    frames = np.rint(100 + 5 * random.normal(size=(2, 4 * HEIGHT, 4 * WIDTH, 3))).clip(0, 255).astype(np.uint8)
    maps = pixel_maps(tmp_path, [0.0, 0.0], weights)
    gray = np.full((8, 8, 4), (100 / 255, 100 / 255, 100 / 255, 1), np.float32)
    pictures = {name: CanonicalImage(gray, maps.boxes[0], name) for name in maps.layers}
    hole = (slice(60, 180), slice(100, 220))
    for has_grain, least, most in ((True, 4.0, 6.0), (False, 0.0, 1.0)):
        removal = RemovalPass(maps, pictures, {"layer 0": [HiddenShare(lambda t: 1.0, has_grain=has_grain)]})
        shown = [removal.render_frame(t, frame).astype(float) for t, frame in enumerate(frames)]
        assert all(least <= picture[hole].std() <= most for picture in shown)
        assert all(abs(picture[hole].mean() - 100) < 1 for picture in shown)
        # It is another in each frame, and the same whenever a frame is rendered.
        assert np.array_equal(removal.render_frame(0, frames[0]), shown[0])
        if has_grain:
            assert abs(np.corrcoef(shown[0][hole].ravel(), shown[1][hole].ravel())[0, 1]) < 0.3
