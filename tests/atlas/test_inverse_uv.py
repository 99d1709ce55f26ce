"""The way back from a canonical plane to a frame ends where the way there began; beyond what is seen it goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from neural_fields.atlas.inverse_uv import find_frame_positions, solve_positions
from neural_fields.atlas.uv_extrapolation import extrapolate_uv
from neural_fields.atlas.uv_maps import Maps
from neural_fields.core import coords
from neural_fields.data.synthetic.suite import SUITE_CLIPS, make_suite_clip
from tests.support.map_arrays import load_map, save_map
from tests.support.true_run import TrueRun

pytestmark = pytest.mark.slow

NEAR = 0.02  # pixels


@pytest.fixture(scope="module")
def maps(true_run: TrueRun) -> Maps:
    return Maps.open(true_run.run.maps)


def places_in(mask: np.ndarray, count: int = 1500) -> np.ndarray:
    """Positions within a mask, two pixels from its rim."""
    height, width = mask.shape
    points = np.random.default_rng(0).uniform([1, 1], [width - 1, height - 1], (count, 2))
    column, row = np.floor(points).astype(int).T
    return points[cv2.erode(mask.astype(np.uint8), np.ones((5, 5)))[row, column] > 0]


def true_uv(clip: Any, layer: int, t: int, points: np.ndarray) -> np.ndarray:
    xy = coords.normalize_pixels(torch.from_numpy(points), clip.width, clip.height)
    return clip.surfaces[layer].uv_at(t, xy).numpy()


@pytest.mark.parametrize("t", [0, 5, 11])
@pytest.mark.parametrize("layer", [0, 1])
def test_a_point_comes_back_to_where_it_was_and_is_seen_there(
    true_run: TrueRun, maps: Maps, layer: int, t: int
) -> None:
    clip = true_run.clip
    points = places_in(clip.masks[0][t] == (layer == 0))
    found = find_frame_positions(maps, t, clip.layer_names[layer], true_uv(clip, layer, t, points))
    assert len(points) > 50 and np.abs(found.pixels - points).max() < NEAR
    assert found.error.max() < NEAR and found.visible.all()
    twice = find_frame_positions(maps, t, clip.layer_names[layer], true_uv(clip, layer, t, points), (384, 216))
    assert np.abs(twice.pixels - 2 * points).max() < 2 * NEAR


@pytest.mark.parametrize("name", SUITE_CLIPS)
def test_so_it_does_for_every_kind_of_motion(name: str) -> None:
    clip = make_suite_clip(name, frames=5, size=(128, 72))
    labels = clip.compute_labels()
    for layer, surface in enumerate(clip.surfaces):
        for t in (0, 4):
            seen = labels[t] == layer
            found = extrapolate_uv(clip.uv[layer, t], seen)
            points = places_in(seen)
            if name == "turning" and layer == 0:  # a wall that is seen from the side has hardly a map
                points = points[np.abs(points[:, 0] - 64) < 0.85 * np.abs(points[:, 0] - 64).max()]
            assert found is not None and len(points) > 20
            back, off = solve_positions(found, true_uv(clip, layer, t, points), seen)
            assert np.abs(back - points).max() < NEAR and off.max() < NEAR, surface.name


def test_it_does_not_matter_how_far_a_point_has_moved(true_run: TrueRun, maps: Maps) -> None:
    """A start that is the same everywhere would be up to half a frame away."""
    clip = true_run.clip
    corners = np.array([[0.6, 0.6], [191.4, 0.6], [0.6, 107.4], [191.4, 107.4]])
    for t in range(clip.count):
        back = find_frame_positions(maps, t, "background", true_uv(clip, 1, t, corners))
        assert np.abs(back.pixels - corners).max() < NEAR


def test_beyond_what_is_seen_it_goes_on_smoothly_and_says_that_nothing_is_seen(true_run: TrueRun, maps: Maps) -> None:
    clip, t = true_run.clip, 6
    row, column = np.nonzero(clip.masks[0][t])
    middle, radius = np.array([column.mean(), row.mean()]), np.sqrt(len(row) / np.pi)
    line = middle + np.linspace(0, 3 * radius, 60)[:, None] * [1.0, 0.2]
    found = find_frame_positions(maps, t, "foreground", true_uv(clip, 0, t, line))
    assert np.abs(found.pixels - line).max() < 0.5  # the turtle turns and grows: an affine map
    assert np.abs(np.diff(found.pixels, 2, axis=0)).max() < 0.1
    assert found.visible[:15].all() and not found.visible[-20:].any()
    behind = find_frame_positions(maps, t, "background", true_uv(clip, 1, t, middle[None]))
    assert np.abs(behind.pixels - middle).max() < 0.1 and not behind.visible.any()
    outside = find_frame_positions(maps, t, "background", true_uv(clip, 1, t, np.array([[-9.0, 50.0], [100.0, 120.0]])))
    assert np.abs(outside.pixels - [[-9, 50], [100, 120]]).max() < 0.1 and not outside.visible.any()


def test_a_frame_that_hardly_shows_a_layer_has_no_places(true_run: TrueRun, maps: Maps, tmp_path: Path) -> None:
    for path in maps.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weight = load_map(tmp_path, "weight")
    weight[3, 0], weight[3, 1] = 0, 255
    save_map(tmp_path, "weight", weight)
    found = find_frame_positions(replace(maps, folder=tmp_path), 3, "foreground", np.zeros((2, 2)))
    assert np.isnan(found.pixels).all() and np.isinf(found.error).all() and not found.visible.any()
