"""Coordinate conventions and conversions, all in one place.

Pixels: x right, y down, the center of pixel (row i, column j) is (j + 0.5, i + 0.5); a frame spans [0, W] x [0, H].
Network input xyt: ((2x - W)/L, (2y - H)/L, 2(t + 0.5)/T - 1) with L = max(W, H), so one unit is the same length on
both axes. Canonical uv use the unit of xy: the identity map shows the frame. A canonical picture covers the box
(u0, v0, u1, v1) and its texel centers sit at half steps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from neural_fields.core.box import Box


def frame_box(width: int, height: int) -> Box:
    """Returns the box that a frame of `width` x `height` pixels covers in xy units.

    Example:
        >>> frame_box(640, 320)
        Box(u0=-1.0, v0=-0.5, u1=1.0, v1=0.5)
    """
    long = max(width, height)
    return Box(-width / long, -height / long, width / long, height / long)


def normalize_pixels(xy: Float[Tensor, "*n 2"], width: int, height: int) -> Float[Tensor, "*n 2"]:
    """Converts pixel coordinates to xy units.

    Args:
        xy: positions in pixels, x right and y down; the center of the first pixel is (0.5, 0.5).
        width: width of the frame in pixels.
        height: height of the frame in pixels.

    Returns:
        The positions in xy units: -1 to 1 along the longer side of the frame, (0, 0) in its middle.

    Example:
        >>> normalize_pixels(torch.tensor([[0.0, 0.0], [320.0, 160.0]]), 640, 320).tolist()
        [[-1.0, -0.5], [0.0, 0.0]]
    """
    return (2 * xy - xy.new_tensor([width, height])) / max(width, height)


def denormalize_pixels(xy: Float[Tensor, "*n 2"], width: int, height: int) -> Float[Tensor, "*n 2"]:
    """Converts xy units to pixel coordinates: the inverse of `normalize_pixels`.

    Args:
        xy: positions in xy units.
        width: width of the frame in pixels.
        height: height of the frame in pixels.

    Returns:
        The positions in pixels, x right and y down.

    Example:
        >>> denormalize_pixels(torch.tensor([[-1.0, -0.5], [0.0, 0.0]]), 640, 320).tolist()
        [[0.0, 0.0], [320.0, 160.0]]
    """
    return (xy * max(width, height) + xy.new_tensor([width, height])) / 2


def normalize_time(frame: Tensor | float | int, count: int) -> Tensor | float:
    """Converts a frame index to the time coordinate.

    Args:
        frame: 0 is the first frame; fractions lie between frames.
        count: number of frames of the clip.

    Returns:
        The time, in (-1, 1) for the frames of the clip.

    Example:
        >>> [normalize_time(frame, 4) for frame in range(4)]
        [-0.75, -0.25, 0.25, 0.75]
    """
    return 2 * (frame + 0.5) / count - 1


def denormalize_time(time: Tensor | float, count: int) -> Tensor | float:
    """Converts a time coordinate to a frame index: the inverse of `normalize_time`.

    Args:
        time: network time, in (-1, 1) for the frames of the clip.
        count: number of frames of the clip.

    Returns:
        The index of the frame, 0 for the first; fractions lie between frames.

    Example:
        >>> denormalize_time(0.0, 4)
        1.5
    """
    return (time + 1) * count / 2 - 0.5


def pixel_centers(width: int, height: int, device: torch.device | None = None) -> Float[Tensor, "height width 2"]:
    """Returns the coordinates of every pixel center of a frame.

    Args:
        width: width of the frame in pixels.
        height: height of the frame in pixels.
        device: device of the result; by default torch's default device.

    Returns:
        x and y in pixels, row by row.

    Example:
        >>> pixel_centers(2, 1).tolist()
        [[[0.5, 0.5], [1.5, 0.5]]]
    """
    y = torch.arange(height, dtype=torch.float32, device=device) + 0.5
    x = torch.arange(width, dtype=torch.float32, device=device) + 0.5
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1)


def frame_xy(width: int, height: int, device: torch.device | None = None) -> Float[Tensor, "height width 2"]:
    """Returns the center of every pixel of a frame in xy units.

    Args:
        width: width of the frame in pixels.
        height: height of the frame in pixels.
        device: device of the result; by default torch's default device.

    Returns:
        x and y in xy units, row by row.

    Example:
        >>> frame_xy(2, 1).tolist()
        [[[-0.5, 0.0], [0.5, 0.0]]]
    """
    return normalize_pixels(pixel_centers(width, height, device), width, height)


def frame_axes(
    width: int, height: int, device: torch.device | None = None
) -> tuple[Float[Tensor, " width"], Float[Tensor, " height"]]:
    """Returns the x of every column of a frame and the y of every row, in xy units: the axes of `frame_xy`.

    Args:
        width: width of the frame in pixels.
        height: height of the frame in pixels.
        device: device of the result; by default torch's default device.

    Example:
        >>> [axis.tolist() for axis in frame_axes(2, 1)]
        [[-0.5, 0.5], [0.0]]
    """
    x, y = (2 * torch.arange(side, dtype=torch.float32, device=device) + (1 - side) for side in (width, height))
    return x / max(width, height), y / max(width, height)


def texel_centers(box: Box, width: int, height: int) -> Float[Tensor, "height width 2"]:
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
    step = torch.tensor([box.width / width, box.height / height])
    return pixel_centers(width, height) * step + torch.tensor([box.u0, box.v0])


def box_to_unit(uv: Float[Tensor, "*n 2"], box: Box) -> Float[Tensor, "*n 2"]:
    """Converts uv to positions in the box: (0, 0) is its top left corner, (1, 1) its bottom right one.

    Args:
        uv: positions in uv units.
        box: the rectangle, in uv units.

    Returns:
        The positions, in [0, 1] on both axes for points inside the box.

    Example:
        >>> box_to_unit(torch.tensor([[0.0, 0.5]]), Box(-1.0, -1.0, 1.0, 1.0)).tolist()
        [[0.5, 0.75]]
    """
    return (uv - uv.new_tensor([box.u0, box.v0])) / uv.new_tensor([box.width, box.height])


def uv_to_texels(uv: Float[Tensor, "*n 2"], box: Box, width: int, height: int) -> Float[Tensor, "*n 2"]:
    """Converts uv to texel coordinates: the center of the texel in row i and column j is (j + 0.5, i + 0.5).

    Args:
        uv: positions in uv units.
        box: the rectangle that the canonical picture covers, in uv units.
        width: width of the image in texels.
        height: height of the image in texels.

    Returns:
        The positions in texels, x right and y down.

    Example:
        >>> uv_to_texels(torch.tensor([[0.0, 0.5]]), Box(-1.0, -1.0, 1.0, 1.0), 200, 100).tolist()
        [[100.0, 75.0]]
    """
    return box_to_unit(uv, box) * uv.new_tensor([width, height])


def sample_canonical(
    image: Float[Tensor, "batch channel height width"],
    box: Box,
    uv: Float[Tensor, "batch rows columns 2"],
    padding: str = "border",
) -> Float[Tensor, "batch channel rows columns"]:
    """Samples canonical pictures bilinearly at uv positions: the only use of `grid_sample` on canonical pictures.

    Args:
        image: images that cover `box`.
        box: the rectangle of the canonical plane, in uv units.
        uv: positions to sample at, in uv units.
        padding: the values outside the image: "border" repeats those of the edge, "zeros" has zeros.

    Returns:
        The sampled values, one for each position and channel.

    Example:
        >>> image = torch.tensor([[[[0.0, 1.0]]]])  # one row of two texels
        >>> sample_canonical(image, Box(0.0, 0.0, 2.0, 1.0), torch.tensor([[[[0.5, 0.5], [1.0, 0.5]]]])).tolist()
        [[[[0.0, 0.5]]]]
    """
    grid = box_to_unit(uv, box) * 2 - 1
    return F.grid_sample(image, grid, mode="bilinear", padding_mode=padding, align_corners=False)
