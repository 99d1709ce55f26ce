"""Texture splatting: textures in closed form, as the weighted mean of the frames on the canonical plane."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from neural_fields.core import coords
from neural_fields.core.box import Box


class TextureMean:
    """Computes the weighted mean of frames splatted onto a canonical image, with holes filled smoothly."""

    def __init__(self, box: Box, width: int, height: int) -> None:
        self.box = box
        self.total = torch.zeros(1, 4, height, width)

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
        position = coords.uv_to_texels(uv, self.box, width, height) - 0.5
        # Only the rectangle of the canvas that the pixels touch.
        low, high = (bound.tolist() for bound in torch.aminmax(position.reshape(-1, 2), dim=0))
        left, top = (min(max(0, math.floor(low[i])), side - 1) for i, side in enumerate((width, height)))
        right = min(width, max(left, math.floor(high[0])) + 2)
        bottom = min(height, max(top, math.floor(high[1])) + 2)
        size = position.new_tensor([right - left, bottom - top])
        grid = (2 * (position - position.new_tensor([left, top])) + 1) / size - 1
        values = torch.cat([rgb * weight[..., None], weight[..., None]], dim=-1).permute(2, 0, 1)[None]
        canvas = torch.zeros(1).expand(1, 4, bottom - top, right - left)
        splatted, _ = torch.ops.aten.grid_sampler_2d_backward(
            values.contiguous(), canvas, grid[None], 0, 0, False, [True, False]
        )
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
