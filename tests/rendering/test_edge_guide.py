"""Layers end where objects end in the source, however small the maps are."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from neural_fields.atlas.uv_maps import Maps, MapsHeader, _add_rim
from neural_fields.config.loader import to_mapping
from neural_fields.core import array_coords
from neural_fields.core.box import Box
from neural_fields.core.files import write_json
from neural_fields.rendering.edge_guide import FrameEdges
from tests.support.map_arrays import save_map

SIZE, SCALE = (48, 32), 6
FULL = (SIZE[0] * SCALE, SIZE[1] * SCALE)


def write_maps(folder: Path, weight: np.ndarray) -> Maps:
    """Writes maps of one frame: a layer of some weight in front of another."""
    folder.mkdir(exist_ok=True)
    box = Box(-1.0, -2 / 3, 1.0, 2 / 3)
    for name in ("front", "back"):
        save_map(folder, f"uv-{name}", _add_rim(array_coords.texel_centers(box, *SIZE).astype(np.float32))[None])
    weights = _add_rim(np.stack([weight, 1 - weight], axis=-1)).transpose(2, 0, 1)[None]
    save_map(folder, "weight", np.rint(255 * weights).clip(0, 255).astype(np.uint8))
    header = MapsHeader(("front", "back"), (box, box), SIZE, 1, has_gain=False)
    write_json(folder / "maps.json", to_mapping(header))
    return Maps.open(folder)


def shrink(values: np.ndarray) -> np.ndarray:
    return cv2.resize(values, SIZE, interpolation=cv2.INTER_AREA)


def draw_disc() -> np.ndarray:
    """The exact coverage of a disc in pixels of the source."""
    y, x = np.mgrid[: 4 * FULL[1], : 4 * FULL[0]] + 0.5
    inside = np.hypot(x / 4 - 137.3, y / 4 - 92.6) < 61.7
    return cv2.resize(inside.astype(np.float32), FULL, interpolation=cv2.INTER_AREA)


def paint_frame(coverage: np.ndarray, noise: float) -> np.ndarray:
    """A frame of a textured disc on a textured ground."""
    y, x = np.mgrid[: FULL[1], : FULL[0]]
    colors = np.stack([170 + 20 * np.sin(x / 17), 120 + 20 * np.cos(y / 13), 90 + 0 * x], axis=-1)
    ground = np.stack([80 + 20 * np.cos(x / 11), 90 + 20 * np.sin(y / 19), 150 + 0 * x], axis=-1)
    mixed = coverage[..., None] * colors + (1 - coverage[..., None]) * ground
    mixed += noise * np.random.default_rng(0).standard_normal(mixed.shape)
    return mixed.clip(0, 255).round().astype(np.uint8)


@pytest.mark.parametrize("noise", [0.0, 3.0])
def test_an_outline_is_as_fine_as_the_source(tmp_path: Path, noise: float) -> None:
    true = draw_disc()
    maps = write_maps(tmp_path / "maps", shrink(true))
    enlarged = maps.read_layer_weight(0, 0, FULL)
    found = FrameEdges(0, paint_frame(true, noise)).read_weight(maps, 0)
    band = (enlarged > 0) & (enlarged < 1)
    off, before = (np.abs(weight - true)[band].mean() for weight in (found, enlarged))
    assert before > 0.12 and off < 0.25 * before
    np.testing.assert_allclose(found[~band], enlarged[~band], atol=1 / 255)


def test_what_is_soft_in_the_source_stays_soft(tmp_path: Path) -> None:
    ramp = np.clip((np.arange(FULL[0], dtype=np.float32) + 0.5 - 100) / 90, 0, 1)
    true = np.broadcast_to(ramp, FULL[::-1]).copy()
    maps = write_maps(tmp_path / "maps", shrink(true))
    found = FrameEdges(0, paint_frame(true, 2.0)).read_weight(maps, 0)
    assert np.abs(found - true).mean() < 0.02 and np.abs(found - true).max() < 0.15


def test_texture_moves_no_outline_by_more_than_a_fraction_of_a_pixel_of_the_maps(tmp_path: Path) -> None:
    true = draw_disc()
    maps = write_maps(tmp_path / "maps", shrink(true))
    texture = np.random.default_rng(1).integers(0, 255, (FULL[1] // 3, FULL[0] // 3, 3), dtype=np.uint8)
    found = FrameEdges(0, cv2.resize(texture, FULL)).read_weight(maps, 0)
    wrong = (found > 0.5) != (true > 0.5)
    outline = 2 * np.pi * 61.7
    assert wrong.sum() < 0.25 * SCALE * outline


def test_weights_of_all_layers_sum_to_one_and_frames_that_are_no_finer_change_nothing(tmp_path: Path) -> None:
    true = draw_disc()
    maps = write_maps(tmp_path / "maps", shrink(true))
    edges = FrameEdges(0, paint_frame(true, 2.0))
    np.testing.assert_allclose(edges.read_weights(maps).sum(axis=0), 1, atol=1e-5)
    small = FrameEdges(0, shrink(edges.frame))
    assert small.guide_weight(maps, 0) is None
    np.testing.assert_allclose(small.read_weight(maps, 0), maps.read_layer_weight(0, 0, SIZE), atol=1e-6)
