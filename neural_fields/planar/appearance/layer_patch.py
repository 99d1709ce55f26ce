"""A layer of tables in a rectangle of a frame: its colors, and the analytic gradients of its tables.

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

from neural_fields.planar.appearance.image_texture import ImageTexture
from neural_fields.planar.init.frame_patch import FramePatch
from neural_fields.planar.mappings.frame_grid import FrameTable
from neural_fields.planar.mappings.grid import GridMapping


@lru_cache(maxsize=32)
def interpolation_matrix(cells: int, pixels: int) -> Float[Tensor, "pixels cells"]:
    """Returns the matrix that brings `cells` values to `pixels` values as `F.interpolate` does."""
    eye = torch.eye(cells)[None]
    return F.interpolate(eye, pixels, mode="linear", align_corners=False)[0].T.contiguous()


@dataclass(frozen=True)
class InterpolationMatrices:
    """Interpolates between a table and a patch of the frame."""

    down: Float[Tensor, "height rows"]  # of the patch and of the table
    across: Float[Tensor, "width columns"]

    @staticmethod
    def for_patch(table: FrameTable, size: tuple[int, int], patch: FramePatch) -> InterpolationMatrices:
        """Computes the matrices from a table to a patch of a frame.

        Args:
            table: the table.
            size: (width, height) of the frame in pixels.
            patch: the rectangle of the frame.
        """
        rows, columns = table.shape[2:]
        down, across = interpolation_matrix(rows, size[1]), interpolation_matrix(columns, size[0])
        return InterpolationMatrices(down[patch.top : patch.bottom], across[patch.left : patch.right])

    def interpolate_table(self, table: Float[Tensor, "channel rows columns"]) -> Float[Tensor, "channel height width"]:
        """Interpolates the values of a table."""
        # The narrow product first: a table has few columns.
        return (self.down @ table) @ self.across.T

    def backpropagate_table(
        self, gradient: Float[Tensor, "channel height width"]
    ) -> Float[Tensor, "channel rows columns"]:
        """Returns the gradient of the table, given that of its interpolated values."""
        return self.down.T @ (gradient @ self.across)


@dataclass
class LayerTables:
    """Holds the tables of a layer for a frame."""

    mapping: GridMapping
    texture: ImageTexture
    gain: FrameTable | None  # logarithms of the lighting gain
    t: int


@dataclass
class ForwardCache:
    """Holds the colors of a layer in a patch, and the values that its gradient needs."""

    lit: Float[Tensor, "3 height width"]
    texel: Float[Tensor, "3 height width"]
    light: Float[Tensor, "3 height width"] | None
    crop: Float[Tensor, "3 rows columns"]  # of the texture at its level
    grid: Float[Tensor, "height width 2"]
    corner: tuple[int, int]  # of the crop in its level
    level: tuple[int, int]  # how often the texture is halved, across and down
    per_unit: tuple[float, float]  # grid units for one unit of u and of v
    shifts: InterpolationMatrices
    gains: InterpolationMatrices | None


@dataclass
class LayerGradients:
    """Gradients of one layer from one patch."""

    shift: Float[Tensor, "2 _ _"]
    gain: Float[Tensor, "3 _ _"] | None
    texture: Float[Tensor, "3 _ _"]  # of the crop
    corner: tuple[int, int]  # of the crop in its level
    level: tuple[int, int]


def render_patch(layer: LayerTables, level: tuple[int, int], size: tuple[int, int], patch: FramePatch) -> ForwardCache:
    """Renders a layer in a patch of a frame.

    Args:
        layer: its tables.
        level: how often its texture is halved, across and down.
        size: (width, height) of the frame.
        patch: not empty.
    """
    box, image = layer.texture.box, layer.texture.image.data
    # u and v of the homography at the pixel centers, in the units and the order of `coords.frame_xy`.
    h = layer.mapping.homography[layer.t].tolist()
    x = (2 * (torch.arange(patch.left, patch.right) + 0.5) - size[0]) / max(size)
    y = (2 * (torch.arange(patch.top, patch.bottom) + 0.5) - size[1])[:, None] / max(size)
    u, v = ((row[1] * y + row[2]) + row[0] * x for row in h[:2])
    if h[2][0] == 0 and h[2][1] == 0:
        if h[2][2] != 1:
            u, v = u / h[2][2], v / h[2][2]
    else:
        depth = (h[2][1] * y + h[2][2]) + h[2][0] * x
        u, v = u / depth, v / depth
    # The shifts on top of it, and the samples of the texture's level that the patch needs.
    shifts = InterpolationMatrices.for_patch(layer.mapping.residual, size, patch)
    shift = shifts.interpolate_table(layer.mapping.residual.values[layer.t])
    across, down = (2**halved for halved in level)
    height, width = image.shape[1] // down, image.shape[2] // across
    x = (u + shift[0] - box.u0) * (width / box.width) - 0.5  # positions in samples
    y = (v + shift[1] - box.v0) * (height / box.height) - 0.5
    left, right = _lookup_range(x, width)
    top, bottom = _lookup_range(y, height)
    crop = image[:, top * down : bottom * down, left * across : right * across]
    if across * down > 1:
        crop = F.avg_pool2d(crop, (down, across))
    scale_x, scale_y = 2 / (right - left), 2 / (bottom - top)
    grid = torch.stack([(x - (left - 0.5)) * scale_x - 1, (y - (top - 0.5)) * scale_y - 1]).permute(1, 2, 0)
    per_unit = (scale_x * width / box.width, scale_y * height / box.height)
    texel = torch.ops.aten.grid_sampler_2d(crop[None], grid[None], 0, 1, False)[0]
    # The light.
    light, gains, lit = None, None, texel
    if layer.gain is not None:
        gains = InterpolationMatrices.for_patch(layer.gain, size, patch)
        light = gains.interpolate_table(layer.gain.values[layer.t]).exp_()
        lit = texel * light
    return ForwardCache(lit, texel, light, crop, grid, (top, left), level, per_unit, shifts, gains)


def _lookup_range(position: Tensor, side: int) -> tuple[int, int]:
    """Returns the samples (first, one behind the last) of a side that bilinear lookups at `position` need."""
    low, high = (float(value) for value in torch.aminmax(position))
    first = min(max(0, int(max(low, 0))), side - 1)
    return first, min(side, max(first + 1, int(min(high, side)) + 2))


def backpropagate_patch(cache: ForwardCache, gradient: Float[Tensor, "3 height width"]) -> LayerGradients:
    """Computes the gradients of a layer's tables from the gradient of its colors."""
    gain = None
    if cache.light is not None and cache.gains is not None:
        gain = cache.gains.backpropagate_table(gradient * cache.lit)
        gradient = gradient * cache.light
    texture, grid = torch.ops.aten.grid_sampler_2d_backward(
        gradient[None], cache.crop[None], cache.grid[None], 0, 1, False, [True, True]
    )
    moved = grid[0].permute(2, 0, 1)
    shift = cache.shifts.backpropagate_table(torch.stack([moved[0] * cache.per_unit[0], moved[1] * cache.per_unit[1]]))
    return LayerGradients(shift, gain, texture[0], cache.corner, cache.level)
