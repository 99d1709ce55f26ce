"""The conversions of `coords.py` for NumPy arrays: what reads baked maps and pictures starts without torch."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from neural_fields.core.box import Box


def normalize_pixels(xy: Float[np.ndarray, "*n 2"], width: int, height: int) -> Float[np.ndarray, "*n 2"]:
    """Converts pixel coordinates to xy units.

    Args:
        xy: positions in pixels, x right and y down; the center of the first pixel is (0.5, 0.5).
        width: width of the frame in pixels.
        height: height of the frame in pixels.

    Returns:
        The positions in xy units: -1 to 1 along the longer side of the frame, (0, 0) in its middle.

    Example:
        >>> normalize_pixels(np.array([[0.0, 0.0], [320.0, 160.0]]), 640, 320).tolist()
        [[-1.0, -0.5], [0.0, 0.0]]
    """
    return (2 * xy - np.array([width, height], xy.dtype)) / max(width, height)


def pixel_centers(width: int, height: int) -> Float[np.ndarray, "height width 2"]:
    """Returns the coordinates of every pixel center of a frame, in pixels.

    Example:
        >>> pixel_centers(2, 1).tolist()
        [[[0.5, 0.5], [1.5, 0.5]]]
    """
    x, y = (np.arange(count, dtype=np.float32) + 0.5 for count in (width, height))
    return np.stack(np.meshgrid(x, y), axis=-1)


def frame_xy(width: int, height: int) -> Float[np.ndarray, "height width 2"]:
    """Returns the center of every pixel of a frame in xy units.

    Example:
        >>> frame_xy(2, 1).tolist()
        [[[-0.5, 0.0], [0.5, 0.0]]]
    """
    return normalize_pixels(pixel_centers(width, height), width, height)


def uv_to_texels(uv: Float[np.ndarray, "*n 2"], box: Box, width: int, height: int) -> Float[np.ndarray, "*n 2"]:
    """Converts uv to texel coordinates: the center of the texel in row i and column j is (j + 0.5, i + 0.5).

    Args:
        uv: positions in uv units.
        box: the rectangle that the canonical picture covers, in uv units.
        width: width of the image in texels.
        height: height of the image in texels.

    Returns:
        The positions in texels, x right and y down.

    Example:
        >>> uv_to_texels(np.array([[0.0, 0.5]]), Box(-1.0, -1.0, 1.0, 1.0), 200, 100).tolist()
        [[100.0, 75.0]]
    """
    corner, extent, size = (
        np.array(pair, uv.dtype) for pair in ((box.u0, box.v0), (box.width, box.height), (width, height))
    )
    return (uv - corner) / extent * size


def texel_centers(box: Box, width: int, height: int) -> Float[np.ndarray, "height width 2"]:
    """Returns the uv of every texel center of a canonical picture.

    Args:
        box: the rectangle that the image covers, in uv units.
        width: width of the image in texels.
        height: height of the image in texels.

    Returns:
        u and v of each texel, row by row.

    Example:
        >>> texel_centers(Box(0.0, 0.0, 2.0, 1.0), 2, 1).tolist()
        [[[0.5, 0.5], [1.5, 0.5]]]
    """
    step = np.array([box.width / width, box.height / height], np.float32)
    return pixel_centers(width, height) * step + np.array([box.u0, box.v0], np.float32)
