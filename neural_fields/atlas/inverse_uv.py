"""The inverse uv map: it finds points of a canonical plane in a frame, by the baked maps.

A map is smooth but may be bent, and points may be hidden in the frame. The search starts from the nearest of a grid of
positions that show the layer, or otherwise of a grid over the frame, and continues with Newton's method on the map that
is extrapolated smoothly beyond the visible pixels (`uv_extrapolation.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from neural_fields.atlas.uv_extrapolation import DEFAULTS as EXTRAPOLATION
from neural_fields.atlas.uv_extrapolation import ExtrapolatedMap, extrapolate_frame_map, solve_2x2
from neural_fields.atlas.uv_maps import Maps


@dataclass(frozen=True)
class InverseMapSettings:
    """Settings of the search for the position of a uv in a frame."""

    grid_side: int = 96  # positions along the longer side of the frame at which a search can start
    # Most steps of Newton's method with the Jacobian of the rough map, after those with a smooth one.
    rough_steps: int = 12
    max_step_px: float = 3.0  # longest of these steps, in pixels
    difference_px: float = 0.5  # half the distance, in pixels, over which that Jacobian is measured


DEFAULTS = InverseMapSettings()


@dataclass(frozen=True)
class FramePositions:
    """Holds positions of points in a frame.

    Attributes:
        pixels: x and y in pixels, also outside the frame and of hidden points; nan where the frame shows too little of
            the layer.
        error: error of the position in pixels; inf where none was found.
        visible: whether the frame shows the point.
    """

    pixels: Float[np.ndarray, "n 2"]
    error: Float[np.ndarray, " n"]
    visible: Bool[np.ndarray, " n"]


def find_frame_positions(
    maps: Maps,
    t: int,
    layer: str,
    uv: Float[np.ndarray, "n 2"],
    size: tuple[int, int] | None = None,
    settings: InverseMapSettings = DEFAULTS,
) -> FramePositions:
    """Finds the positions of points of a layer's canonical plane in frame `t`.

    Args:
        maps: the baked maps of a run.
        t: index of the frame in the run.
        layer: the name of the layer.
        uv: any points, in uv units.
        size: (width, height) of the frame whose pixels are returned; by default that of the maps.
        settings: grid of starting positions, number and length of steps.

    Returns:
        The position of each point.
    """
    number, (width, height) = maps.layers.index(layer), maps.size
    found = extrapolate_frame_map(maps, t, number)
    if found is None:
        lost = np.full(len(uv), np.inf)
        return FramePositions(np.full((len(uv), 2), np.nan), lost, np.zeros(len(uv), bool))
    seen = maps.read_layer_weight_small(t, number) >= EXTRAPOLATION.min_map_weight
    pixels, error = solve_positions(found, uv, seen, settings)
    inside = ((pixels >= 0) & (pixels <= (width, height))).all(axis=1)
    x, y = (np.clip(pixels[:, axis] - 0.5, 0, side - 1).astype(np.float32) for axis, side in ((0, width), (1, height)))
    weight = maps.sample_at_points(t, x, y, maps.size).weight[number]
    visible = inside & (error < EXTRAPOLATION.max_error_px) & (weight >= EXTRAPOLATION.min_map_weight)
    scale = np.array(size or maps.size) / maps.size
    return FramePositions(
        pixels * scale, np.where(error < EXTRAPOLATION.max_error_px, error * scale.max(), np.inf), visible
    )


def solve_positions(
    uv_map: ExtrapolatedMap,
    uv: Float[np.ndarray, "n 2"],
    seen: Bool[np.ndarray, "height width"],
    settings: InverseMapSettings = DEFAULTS,
) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, " n"]]:
    """Finds the positions of uv points in a frame, without positions to start from.

    Args:
        uv_map: the map of a frame.
        uv: any points.
        seen: the pixels that show the layer; where a uv occurs twice, they decide.
        settings: grid of starting positions, number and length of steps.

    Returns:
        Positions in pixels, and their errors in pixels.
    """
    height, width = seen.shape
    step = max(1, round(max(width, height) / settings.grid_side))
    x, y = np.meshgrid(np.arange(step // 2, width, step), np.arange(step // 2, height, step))
    grid, is_seen = np.stack([x, y], axis=-1).reshape(-1, 2) + 0.5, seen[y, x].reshape(-1)
    is_seen = is_seen if is_seen.any() else ~is_seen
    pixels, error = uv_map.solve_positions(uv, _find_nearest(uv_map, uv, grid[is_seen]))
    # From the whole frame, where that did not lead to the point.
    rest = np.flatnonzero(error >= EXTRAPOLATION.tolerance_px)
    again, other = uv_map.solve_positions(uv[rest], _find_nearest(uv_map, uv[rest], grid))
    better = other < error[rest]
    pixels[rest[better]], error[rest[better]] = again[better], other[better]
    # With the Jacobian of the rough map, where the smooth one fails because the map bends too much.
    rest = np.flatnonzero(error >= EXTRAPOLATION.tolerance_px)
    best, least, points = pixels[rest], error[rest], pixels[rest]
    for _ in range(settings.rough_steps):
        here = uv_map.sample_uv(points)
        columns = []
        for offset in settings.difference_px * np.eye(2):
            columns.append(
                (uv_map.sample_uv(points + offset) - uv_map.sample_uv(points - offset)) / (2 * settings.difference_px)
            )
        move = solve_2x2(uv[rest] - here, np.stack(columns, axis=-1))
        off = np.linalg.norm(move, axis=1)
        better = off < least
        best, least = np.where(better[:, None], points, best), np.where(better, off, least)
        points = points + move * np.minimum(1, settings.max_step_px / np.maximum(off, 1e-9))[:, None]
    pixels[rest], error[rest] = best, least
    return pixels, error


def _find_nearest(
    found: ExtrapolatedMap, uv: Float[np.ndarray, "n 2"], places: Float[np.ndarray, "m 2"]
) -> Float[np.ndarray, "n 2"]:
    """Finds for each uv the place whose own uv is the nearest to it."""
    from scipy.spatial import KDTree

    return places[KDTree(found.sample_uv(places)).query(uv)[1]]
