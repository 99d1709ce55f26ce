"""Lays a picture on the canonical plane, so that one frame shows it at given corners.

Each knot of the plane is located in the frame by the inverse of the frame's map, and from there in the picture by the
inverse of the homography from the picture to its corners (Hartley and Zisserman, "Multiple View Geometry in Computer
Vision", 2nd edition, 4.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from neural_fields.atlas.inverse_uv import solve_positions
from neural_fields.atlas.layer_sight import sample_pixels
from neural_fields.atlas.placed_picture import PicturePatch
from neural_fields.atlas.uv_extrapolation import DEFAULTS as EXTRAPOLATION
from neural_fields.atlas.uv_extrapolation import ExtrapolatedMap
from neural_fields.atlas.uv_maps import Maps
from neural_fields.core.box import Box
from neural_fields.planar.init.frame_registration import apply_transform


@dataclass(frozen=True)
class ProjectionSettings:
    """Settings of where the map of a picture has knots."""

    max_knots: int = 60_000  # they are a pixel of the maps apart, if that is fewer; linear in between
    outline_points: int = 33  # points along a side of the picture, to find the area that it covers
    margin_px: float = 2.0  # pixels of the maps around that area


DEFAULTS = ProjectionSettings()

Quad = Float[np.ndarray, "4 2"]  # corners of a picture: top left, top right, bottom right, bottom left


def compute_homography(size: tuple[int, int], quad: Quad) -> Float[np.ndarray, "3 3"]:
    """Computes the homography that maps the corners of a picture to the corners of a quad in a frame.

    Args:
        size: (width, height) of the picture in pixels.
        quad: the four corners (x, y) in the frame, top left first, clockwise, in pixels.

    Returns:
        A matrix that maps homogeneous pixel positions (x, y, 1) of the picture to those of the frame.

    Example:
        >>> quad = np.array([[10.0, 20.0], [30.0, 20.0], [30.0, 30.0], [10.0, 30.0]])
        >>> (compute_homography((2, 1), quad) @ [1, 0.5, 1]).round(6).tolist()
        [20.0, 25.0, 1.0]
    """
    width, height = size
    rows, values = [], []
    for (x, y), (u, v) in zip([(0, 0), (1, 0), (1, 1), (0, 1)], quad, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    unit = np.append(np.linalg.solve(np.array(rows, np.float64), np.array(values, np.float64)), 1).reshape(3, 3)
    return unit @ np.diag([1 / width, 1 / height, 1])


def lay_picture(
    uv_map: ExtrapolatedMap,
    is_seen: Bool[np.ndarray, "height width"],
    size: tuple[int, int],
    quad: Quad,
    limit: Box,
    light: Float[np.ndarray, "height width 3"] | None = None,
    settings: ProjectionSettings = DEFAULTS,
) -> PicturePatch | None:
    """Lays a picture on the plane of a layer, with its corners at `quad` in a frame.

    Args:
        uv_map: of the layer in that frame.
        is_seen: the pixels that show the layer.
        size: (width, height) of the picture in pixels.
        quad: the corners (x, y) in pixels at the training size.
        limit: the part of the plane that belongs to the layer in that frame.
        light: logarithm of the light in that frame, which the picture has already; None: it has none.
        settings: number of knots.

    Returns:
        Where the plane lies in the picture; None if the picture does not touch the layer.
    """
    transform = compute_homography(size, quad)
    side = np.linspace(0, 1, settings.outline_points)
    grid = np.stack(np.meshgrid(side * size[0], side * size[1]), axis=-1).reshape(-1, 2)
    points = apply_transform(transform, grid)
    uv, slope = uv_map.sample_uv(points), uv_map.sample_jacobian(points)
    pixel = np.median(np.linalg.norm(slope, axis=-1), axis=0).astype(np.float64)
    low = np.maximum(uv.min(axis=0) - settings.margin_px * pixel, [limit.u0, limit.v0])
    high = np.minimum(uv.max(axis=0) + settings.margin_px * pixel, [limit.u1, limit.v1])
    if (high - low < 2 * pixel).any():
        return None

    sides = (high - low) / pixel
    columns, rows = np.ceil(sides * min(1.0, (settings.max_knots / sides.prod()) ** 0.5)).astype(int) + 1
    u, v = np.linspace(low[0], high[0], columns), np.linspace(low[1], high[1], rows)
    pixels, error = solve_positions(uv_map, np.stack(np.meshgrid(u, v), -1).reshape(-1, 2), is_seen)
    back = np.linalg.inv(transform)
    depth = pixels @ back[2, :2] + back[2, 2]
    is_known = (error < EXTRAPOLATION.max_error_px) & (depth > 0)  # behind the horizon of the homography is no picture
    places = np.where(is_known[:, None], apply_transform(back, pixels), -1.0)
    found = np.column_stack([places, is_known]).astype(np.float32).reshape(rows, columns, 3)
    without = None if light is None else -sample_pixels(light, pixels).reshape(rows, columns, 3)
    return PicturePatch(Box(*(float(value) for value in (*low, *high))), found, without)


def find_own_plane(maps: Maps, layer: str, t: int) -> Box:
    """Returns the part of a layer's plane that belongs to a frame: all of it, or the chart of the frame.

    Args:
        maps: the baked maps of the run.
        layer: name of the layer.
        t: frame of the run.
    """
    chart = maps.find_chart(layer, t)
    return chart.box if chart else maps.boxes[maps.layers.index(layer)]
