"""Coordinate conventions and conversions, all in one place.

Pixels: x right, y down, the center of pixel (row i, column j) is (j + 0.5, i + 0.5); a frame spans [0, W] x [0, H].
Network input xyt: ((2x - W)/L, (2y - H)/L, 2(t + 0.5)/T - 1) with L = max(W, H), so one unit is the same length on
both axes. Canonical uv use the unit of xy: the identity map shows the frame. A canonical image covers the box
(u0, v0, u1, v1) and its texel centers sit at half steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Box:
    """The rectangle of the canonical plane that an image covers, in uv units."""

    u0: float
    v0: float
    u1: float
    v1: float

    @property
    def width(self) -> float:
        """The extent along u, in uv units."""
        return self.u1 - self.u0

    @property
    def height(self) -> float:
        """The extent along v, in uv units."""
        return self.v1 - self.v0

    def as_tuple(self) -> tuple[float, float, float, float]:
        """Returns (u0, v0, u1, v1)."""
        return (self.u0, self.v0, self.u1, self.v1)


def frame_box(width: int, height: int) -> Box:
    """Returns the box that a frame of `width` x `height` pixels covers in xy units."""
    long = max(width, height)
    return Box(-width / long, -height / long, width / long, height / long)


def normalize_pixels(xy: Float[Tensor, "*n 2"], width: int, height: int) -> Float[Tensor, "*n 2"]:
    """Converts pixel coordinates to xy units."""
    return (2 * xy - xy.new_tensor([width, height])) / max(width, height)


def denormalize_pixels(xy: Float[Tensor, "*n 2"], width: int, height: int) -> Float[Tensor, "*n 2"]:
    """Converts xy units to pixel coordinates."""
    return (xy * max(width, height) + xy.new_tensor([width, height])) / 2


def normalize_time(frame: Tensor | float | int, count: int) -> Tensor | float:
    """Converts a frame index (0 is the first; fractions lie between frames) to the time coordinate in (-1, 1)."""
    return 2 * (frame + 0.5) / count - 1


def denormalize_time(time: Tensor | float, count: int) -> Tensor | float:
    """Converts a time coordinate to a frame index."""
    return (time + 1) * count / 2 - 0.5


def pixel_centers(width: int, height: int, device: torch.device | None = None) -> Float[Tensor, "height width 2"]:
    """Returns the pixel coordinates of every pixel center of a frame."""
    y = torch.arange(height, dtype=torch.float32, device=device) + 0.5
    x = torch.arange(width, dtype=torch.float32, device=device) + 0.5
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1)


def frame_xy(width: int, height: int, device: torch.device | None = None) -> Float[Tensor, "height width 2"]:
    """Returns the center of every pixel of a frame in xy units."""
    return normalize_pixels(pixel_centers(width, height, device), width, height)


def texel_centers(box: Box, width: int, height: int) -> Float[Tensor, "height width 2"]:
    """Returns the uv of every texel center of a canonical image of `width` x `height` texels that covers `box`."""
    step = torch.tensor([box.width / width, box.height / height])
    return pixel_centers(width, height) * step + torch.tensor([box.u0, box.v0])


def box_to_unit(uv: Float[Tensor, "*n 2"], box: Box) -> Float[Tensor, "*n 2"]:
    """Converts uv to [0, 1]^2 over the box (top left is 0, 0)."""
    return (uv - uv.new_tensor([box.u0, box.v0])) / uv.new_tensor([box.width, box.height])


def uv_to_texels(uv: Float[Tensor, "*n 2"], box: Box, width: int, height: int) -> Float[Tensor, "*n 2"]:
    """Converts uv to texel coordinates (the center of texel (i, j) is (j + 0.5, i + 0.5))."""
    return box_to_unit(uv, box) * uv.new_tensor([width, height])


def sample_canonical(
    image: Float[Tensor, "batch channel height width"],
    box: Box,
    uv: Float[Tensor, "batch rows columns 2"],
    padding: str = "border",
) -> Float[Tensor, "batch channel rows columns"]:
    """Samples canonical images bilinearly at uv positions: the only use of `grid_sample` on canonical images.

    Args:
        image: images that cover `box`.
        box: the rectangle of the canonical plane, in uv units.
        uv: positions to sample at, in uv units.
        padding: what lies outside the image: "border" (the edge goes on) or "zeros".

    Returns:
        The sampled values, one for each position and channel.
    """
    grid = box_to_unit(uv, box) * 2 - 1
    return F.grid_sample(image, grid, mode="bilinear", padding_mode=padding, align_corners=False)
