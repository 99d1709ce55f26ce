"""Point tracks over a clip, and the true ones of a synthetic clip."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped

from neural_fields.core import coords
from neural_fields.data.point_tracks import PointTracks
from neural_fields.data.synthetic.planar_clips import SyntheticClip


def compute_true_tracks(
    clip: SyntheticClip,
    points: Shaped[np.ndarray, "points 2"],
    frame: int,
    layers: Int[np.ndarray, " points"] | None = None,
) -> PointTracks:
    """Computes the true tracks of the surface points at pixel positions of one frame.

    Args:
        clip: a synthetic clip.
        points: pixel positions (x, y).
        frame: the frame that the points are taken in.
        layers: the layer that each point is taken on, also where it is hidden; by default the one visible there.

    Returns:
        The tracks. A point is visible where it is in the frame, faces the camera, and no layer in front covers it.
    """
    start = coords.normalize_pixels(torch.from_numpy(np.asarray(points, np.float64)), clip.width, clip.height)
    layer = torch.from_numpy(find_visible_layers(clip, frame, points) if layers is None else layers)
    positions = np.zeros((len(points), clip.count, 2))
    visible = np.zeros((len(points), clip.count), bool)
    for number, surface in enumerate(clip.surfaces):
        own = layer == number
        uv = surface.uv_at(frame, start[own])
        for t in range(clip.count):
            xy = surface.xy_at(t, uv)
            pixels = clip.to_pixels(xy).numpy()
            positions[own.numpy(), t] = pixels
            free = surface.faces_camera(t, uv) & clip.is_inside_layer(number, t, xy)
            for front in range(number):
                free &= ~clip.is_inside_layer(front, t, xy)
            inside = np.all((pixels >= 0) & (pixels < (clip.width, clip.height)), axis=-1)
            visible[own.numpy(), t] = free.numpy() & inside
    return PointTracks(positions, visible)


def find_visible_layers(
    clip: SyntheticClip, frame: int, points: Shaped[np.ndarray, "points 2"]
) -> Int[np.ndarray, " points"]:
    """Finds the layer that is visible at each position of a frame.

    Args:
        clip: the synthetic clip.
        frame: number of the frame.
        points: x and y in pixels.

    Returns:
        The number of the layer at each point.
    """
    xy = coords.normalize_pixels(torch.from_numpy(np.asarray(points, np.float64)), clip.width, clip.height)
    covered = torch.stack([clip.is_inside_layer(layer, frame, xy) for layer in range(len(clip.surfaces))])
    return covered.int().argmax(0).numpy()  # the first that covers; the background covers everything


def make_grid_points(clip: SyntheticClip, frame: int, step: int) -> Float[np.ndarray, "points 2"]:
    """Lists pixel centers of a frame, on a grid, where a single layer is visible.

    Args:
        clip: the synthetic clip.
        frame: number of the frame.
        step: distance of the points, in pixels.

    Returns:
        x and y in pixels.
    """
    centers = coords.pixel_centers(clip.width, clip.height).numpy()[step // 2 :: step, step // 2 :: step]
    mixed = np.any((clip.alpha[:, frame] > 0.01) & (clip.alpha[:, frame] < 0.99), axis=0)
    return centers[~np.asarray(mixed)[step // 2 :: step, step // 2 :: step]].astype(float)
