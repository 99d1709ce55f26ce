"""Texture splatting: textures in closed form, as the weighted mean of the frames on the canonical plane."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from neural_fields.core.box import Box
from neural_fields.nn.compiled_loops import can_compile_loops


class TextureMean:
    """Computes the weighted mean of frames splatted onto a canonical picture, with holes filled smoothly."""

    def __init__(self, box: Box, width: int, height: int) -> None:
        self.box = box
        self.total = torch.zeros(1, height, width, 4).permute(0, 3, 1, 2)  # sums of weighted colors, and of weights

    def add_frame(
        self,
        uv: Float[Tensor, "rows columns 2"],
        rgb: Float[Tensor, "rows columns 3"],
        weight: Float[Tensor, "rows columns"],
    ) -> None:
        """Adds the pixels of a frame.

        A splat is the transpose of bilinear sampling, so it is the gradient of sampling.

        Args:
            uv: canonical position of each pixel.
            rgb: its color.
            weight: its weight in the mean, 0 or more.
        """
        height, width = self.total.shape[-2:]
        if can_compile_loops():
            from neural_fields.imaging.splatting_loop import splat_pixels  # numba takes a second

            across, down = width / self.box.width, height / self.box.height  # texels in a unit of uv
            places = (across, -across * self.box.u0 - 0.5, down, -down * self.box.v0 - 0.5)
            pixels = (part.contiguous().numpy() for part in (uv[..., 0], uv[..., 1], rgb, weight))
            splat_pixels(*pixels, np.array(places, np.float32), self.total[0].permute(1, 2, 0).numpy())
            return
        # Only the rectangle of the canvas that the pixels touch, along x and along y.
        firsts, lasts, axes = [], [], []
        for axis, (side, start, length) in enumerate(
            ((width, self.box.u0, self.box.width), (height, self.box.v0, self.box.height))
        ):
            texels = side / length  # in a unit of uv
            low, high = (texels * (float(bound) - start) - 0.5 for bound in torch.aminmax(uv[..., axis]))
            first = min(max(0, math.floor(low)), side - 1)
            last = min(side, max(first, math.floor(high)) + 2)
            scale = 2 * texels / (last - first)  # of the positions that `grid_sample` takes: -1 to 1
            axes.append(uv[..., axis] * scale - (scale * (start + first / texels) + 1))
            firsts.append(first)
            lasts.append(last)
        (left, top), (right, bottom) = firsts, lasts
        values = torch.empty(1, 4, *weight.shape)
        torch.mul(rgb.permute(2, 0, 1), weight, out=values[0, :3])
        values[0, 3] = weight
        canvas = torch.zeros(1).expand(1, 4, bottom - top, right - left)
        grid = torch.stack(axes, dim=-1)[None]
        splatted, _ = torch.ops.aten.grid_sampler_2d_backward(values, canvas, grid, 0, 0, False, [True, False])
        self.total[..., top:bottom, left:right] += splatted

    def compute_image(self) -> Float[Tensor, "3 height width"]:
        """Returns the mean; a texel that no pixel was splatted on takes the color of its surroundings."""
        return fill_holes(self.total[:, :3], self.total[:, 3:])[0]


def fill_holes(
    total: Float[Tensor, "batch channel height width"], weight: Float[Tensor, "batch 1 height width"]
) -> Float[Tensor, "batch channel height width"]:
    """Computes total / weight, and means of increasingly larger neighborhoods for small weights (pull-push)."""
    coarse_weight = 0.02  # of the surroundings in each texel
    pyramid = [(total, weight)]
    while max(pyramid[-1][0].shape[-2:]) > 1:
        pyramid.append(tuple(F.avg_pool2d(part, 2, ceil_mode=True) for part in pyramid[-1]))  # type: ignore[arg-type]
    filled = pyramid[-1][0] / pyramid[-1][1].clamp_min(1e-6)
    for sums, weights in reversed(pyramid[:-1]):
        coarse = F.interpolate(filled, sums.shape[-2:], mode="bilinear", align_corners=False)
        filled = (sums + coarse_weight * coarse) / (weights + coarse_weight)
    return filled
