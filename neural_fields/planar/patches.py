"""One layer of tables in a rectangle of a frame: what it shows, and the gradients of its tables, written out.

Between a table and the pixels lies `F.interpolate(mode="bilinear", align_corners=False)`, which is a product with one
matrix from each side: A_y table A_x^T; its gradient is A_y^T gradient A_x.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from neural_fields.planar.frame_table import FrameTable
from neural_fields.planar.gain import GridGain
from neural_fields.planar.mapping import GridMapping
from neural_fields.planar.texture import ImageTexture


@lru_cache(maxsize=32)
def interpolation(cells: int, pixels: int) -> Float[Tensor, "pixels cells"]:
    """The matrix that brings `cells` values to `pixels` values as `F.interpolate` does."""
    eye = torch.eye(cells)[None]
    return F.interpolate(eye, pixels, mode="linear", align_corners=False)[0].T.contiguous()


@dataclass(frozen=True)
class Patch:
    """A rectangle of a frame."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def is_empty(self) -> bool:
        return self.bottom <= self.top or self.right <= self.left

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def cut(self, other: Patch) -> Patch:
        """What both hold."""
        return Patch(
            max(self.top, other.top),
            min(self.bottom, other.bottom),
            max(self.left, other.left),
            min(self.right, other.right),
        )

    def of(self, planes: Tensor, origin: Patch | None = None) -> Tensor:
        """The rectangle of planes [..., rows, columns] that begin at `origin` (default: the frame's corner)."""
        top, left = (origin.top, origin.left) if origin else (0, 0)
        return planes[..., self.top - top : self.bottom - top, self.left - left : self.right - left]


@dataclass(frozen=True)
class Weave:
    """Interpolation between a table and a patch of the frame."""

    down: Tensor  # [rows of the patch, rows of the table]
    across: Tensor  # [columns of the patch, columns of the table]

    @staticmethod
    def between(table: FrameTable, size: tuple[int, int], patch: Patch) -> Weave:
        rows, columns = table.shape[2:]
        down, across = interpolation(rows, size[1]), interpolation(columns, size[0])
        return Weave(down[patch.top : patch.bottom], across[patch.left : patch.right])

    def forward(self, table: Float[Tensor, "channel rows columns"]) -> Float[Tensor, "channel height width"]:
        # The narrow product first: a table has few columns.
        return (self.down @ table) @ self.across.T

    def backward(self, gradient: Float[Tensor, "channel height width"]) -> Float[Tensor, "channel rows columns"]:
        return self.down.T @ (gradient @ self.across)


@dataclass
class Layer:
    """A layer's tables for one frame, and where their gradients are added."""

    mapping: GridMapping
    texture: ImageTexture
    gain: GridGain | None
    t: int


@dataclass
class Looked:
    """What a layer shows in a patch, and what its gradient needs."""

    lit: Tensor  # [3, h, w]
    texel: Tensor  # [3, h, w]
    light: Tensor | None  # [3, h, w]
    crop: Tensor  # [3, rows, columns] of the texture
    grid: Tensor  # [h, w, 2]
    corner: tuple[int, int]  # of the crop in its level
    level: tuple[int, int]
    per_unit: tuple[float, float]  # grid units for one unit of u and of v
    shifts: Weave
    gains: Weave | None


@dataclass
class Found:
    """Gradients of one layer from one patch."""

    shift: Tensor
    gain: Tensor | None
    texture: Tensor
    corner: tuple[int, int]
    level: tuple[int, int]


def look(layer: Layer, level: tuple[int, int], size: tuple[int, int], patch: Patch) -> Looked:
    """The layer in a patch of a frame of `size` (width, height), its texture halved `level` times (across, down)."""
    mapping, box = layer.mapping, layer.texture.box
    shifts = Weave.between(mapping.residual, size, patch)
    u, v = _plane(mapping.homography[layer.t].tolist(), size, patch)
    shift = shifts.forward(mapping.residual.values[layer.t])
    across, down = (2**halved for halved in level)
    image = layer.texture.image.data
    height, width = image.shape[1] // down, image.shape[2] // across
    x = (u + shift[0] - box.u0) * (width / box.width) - 0.5  # sample positions
    y = (v + shift[1] - box.v0) * (height / box.height) - 0.5
    left, right = _span(x, width)
    top, bottom = _span(y, height)
    crop = image[:, top * down : bottom * down, left * across : right * across]
    if across * down > 1:
        crop = F.avg_pool2d(crop, (down, across))
    scale_x, scale_y = 2 / (right - left), 2 / (bottom - top)
    grid = torch.stack([(x - (left - 0.5)) * scale_x - 1, (y - (top - 0.5)) * scale_y - 1]).permute(1, 2, 0)
    texel = torch.ops.aten.grid_sampler_2d(crop[None], grid[None], 0, 1, False)[0]
    light, gains, lit = None, None, texel
    if layer.gain is not None:
        gains = Weave.between(layer.gain.table, size, patch)
        light = gains.forward(layer.gain.table.values[layer.t]).exp_()
        lit = texel * light
    per_unit = (scale_x * width / box.width, scale_y * height / box.height)
    return Looked(lit, texel, light, crop, grid, (top, left), level, per_unit, shifts, gains)


def _plane(h: list[list[float]], size: tuple[int, int], patch: Patch) -> tuple[Tensor, Tensor]:
    """u and v of the homography at the pixel centres of a patch."""
    long = max(size)
    x = (2 * (torch.arange(patch.left, patch.right) + 0.5) - size[0]) / long
    y = (2 * (torch.arange(patch.top, patch.bottom) + 0.5) - size[1])[:, None] / long
    u, v = ((row[1] * y + row[2]) + row[0] * x for row in h[:2])
    if h[2][0] == 0 and h[2][1] == 0:
        return (u, v) if h[2][2] == 1 else (u / h[2][2], v / h[2][2])
    depth = (h[2][1] * y + h[2][2]) + h[2][0] * x
    return u / depth, v / depth


def _span(position: Tensor, side: int) -> tuple[int, int]:
    """The samples (first, one behind the last) of a side that bilinear lookups at `position` need."""
    low, high = (float(value) for value in torch.aminmax(position))
    first = min(max(0, int(max(low, 0))), side - 1)
    return first, min(side, max(first + 1, int(min(high, side)) + 2))


def backward(looked: Looked, gradient: Float[Tensor, "3 h w"]) -> Found:
    """The gradients of a layer's tables, given that of what it shows."""
    gain = None
    if looked.light is not None and looked.gains is not None:
        gain = looked.gains.backward(gradient * looked.lit)
        gradient = gradient * looked.light
    texture, grid = torch.ops.aten.grid_sampler_2d_backward(
        gradient[None], looked.crop[None], looked.grid[None], 0, 1, False, [True, True]
    )
    moved = grid[0].permute(2, 0, 1)
    shift = looked.shifts.backward(torch.stack([moved[0] * looked.per_unit[0], moved[1] * looked.per_unit[1]]))
    return Found(shift, gain, texture[0], looked.corner, looked.level)
