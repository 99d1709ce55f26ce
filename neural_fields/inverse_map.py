"""Where points of a canonical plane lie in a frame, by the baked maps: the way back from the plane to the video.

A map is smooth, but it may be bent, and points may be asked for that the frame does not show. So the search starts from
the nearest of a grid of positions that show the layer, or else from the nearest of the whole frame, and goes on by
Newton's method on the map that goes on smoothly where nothing is seen (`extended_map.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from neural_fields.baking import Maps
from neural_fields.extended_map import EXACT, ExtendedMap, divided
from neural_fields.reshaping import LOST, SEEN, frame_map

GRID = 96  # samples along the longer side that a search can start from
ROUNDS = 12
LONGEST = 3.0  # pixels of a step


@dataclass(frozen=True)
class Places:
    """Where points lie in a frame.

    Attributes:
        pixels: x, y; also beyond the frame and where something hides the point. Not a number where the frame shows too
            little of the layer to tell.
        error: how many pixels the position is off; infinite where there is none.
        visible: whether the frame shows the point.
    """

    pixels: Float[np.ndarray, "n 2"]
    error: Float[np.ndarray, " n"]
    visible: Bool[np.ndarray, " n"]


def inverse(
    maps: Maps, t: int, layer: str, uv: Float[np.ndarray, "n 2"], size: tuple[int, int] | None = None
) -> Places:
    """Where points of a layer's canonical plane lie in frame `t`.

    Args:
        layer: the layer's name.
        uv: any points.
        size: (width, height) that positions are pixels of; by default that of the fit.
    """
    number, (width, height) = maps.layers.index(layer), maps.size
    found = frame_map(maps, t, number)
    if found is None:
        lost = np.full(len(uv), np.inf)
        return Places(np.full((len(uv), 2), np.nan), lost, np.zeros(len(uv), bool))
    pixels, error = solve_all(found, uv, maps.layer_weight_small(t, number) >= SEEN)
    inside = ((pixels >= 0) & (pixels <= (width, height))).all(axis=1)
    x, y = (np.clip(pixels[:, axis] - 0.5, 0, side - 1).astype(np.float32) for axis, side in ((0, width), (1, height)))
    visible = inside & (error < LOST) & (maps.at(t, x, y, maps.size).weight[number] >= SEEN)
    scale = np.array(size or maps.size) / maps.size
    return Places(pixels * scale, np.where(error < LOST, error * scale.max(), np.inf), visible)


def solve_all(
    found: ExtendedMap, uv: Float[np.ndarray, "n 2"], seen: Bool[np.ndarray, "height width"]
) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, " n"]]:
    """Positions that show some uv, and how many pixels they are off, without knowing where to start.

    Args:
        found: the map of a frame.
        seen: the pixels that show the layer: where it lies twice, that is the place that is meant.
    """
    height, width = seen.shape
    step = max(1, round(max(width, height) / GRID))
    x, y = np.meshgrid(np.arange(step // 2, width, step), np.arange(step // 2, height, step))
    grid, shown = np.stack([x, y], axis=-1).reshape(-1, 2) + 0.5, seen[y, x].reshape(-1)
    shown = shown if shown.any() else ~shown
    pixels, error = found.solve(uv, _nearest(found, uv, grid[shown]))
    rest = np.flatnonzero(error >= EXACT)
    again, other = found.solve(uv[rest], _nearest(found, uv[rest], grid))
    better = other < error[rest]
    pixels[rest[better]], error[rest[better]] = again[better], other[better]
    rest = np.flatnonzero(error >= EXACT)
    pixels[rest], error[rest] = _closer(found, uv[rest], pixels[rest], error[rest])
    return pixels, error


def _closer(
    found: ExtendedMap, uv: Float[np.ndarray, "n 2"], start: Float[np.ndarray, "n 2"], error: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, " n"]]:
    """Goes on with the derivative of the map as it is, where the smooth one leads nowhere: it bends too much there."""
    best, least, points = start, error, start
    for _ in range(ROUNDS):
        here = found.at(points)
        columns = [(found.at(points + 0.5 * d) - found.at(points - 0.5 * d)) for d in np.eye(2)]
        step = divided(uv - here, np.stack(columns, axis=-1))
        off = np.linalg.norm(step, axis=1)
        better = off < least
        best, least = np.where(better[:, None], points, best), np.where(better, off, least)
        points = points + step * np.minimum(1, LONGEST / np.maximum(off, 1e-9))[:, None]
    return best, least


def _nearest(
    found: ExtendedMap, uv: Float[np.ndarray, "n 2"], places: Float[np.ndarray, "m 2"]
) -> Float[np.ndarray, "n 2"]:
    """The place whose uv is the nearest to each of some."""
    from scipy.spatial import KDTree

    return places[KDTree(found.at(places)).query(uv)[1]]
