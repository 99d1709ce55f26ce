"""Loss terms of "Deformable Sprites for Unsupervised Video Decomposition" (Ye et al. 2022), by its code."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from neural_fields.data.clip import Batch

if TYPE_CHECKING:
    from neural_fields.planar.model import LayerSamples

LEVELS = 3  # of the Laplacian pyramid


def composite_l1(samples: LayerSamples, batch: Batch) -> Float[Tensor, ""]:
    """Mean absolute error of the composite, over points and channels."""
    return _error(samples, batch).abs().mean()


def _error(samples: LayerSamples, batch: Batch) -> Float[Tensor, "n 3"]:
    from neural_fields.planar.model import composite

    return composite(samples) - batch.rgb.to(samples.color.device)


def laplacian(samples: LayerSamples, batch: Batch) -> Float[Tensor, ""]:
    """Mean absolute error of the levels of the Laplacian pyramid of the composite, levels added; whole frames only."""
    width, height = batch.clip.size
    error = _error(samples, batch)  # pyramids are linear: the one of the error will do
    level = error.T.reshape(3, -1, height, width).movedim(1, 0)
    total = error.new_zeros(())
    for _ in range(LEVELS):
        if min(level.shape[-2:]) < 2:
            break
        smaller = F.avg_pool2d(level, 2, ceil_mode=True, count_include_pad=False)
        band = level - F.interpolate(smaller, level.shape[-2:], mode="bilinear", align_corners=False)
        total, level = total + band.abs().mean(), smaller
    return total


def contrast(samples: LayerSamples) -> Float[Tensor, ""]:
    """Mean dot product of the colours that different layers have at a point, over all pairs of layers.

    A layer is dark where another one explains the picture. A layer's pairs with itself count as 0, as in the code.
    """
    layers = samples.color.shape[1]
    color = samples.color.clamp_min(0)  # pictures are not bounded, as the paper's networks are
    together = color.sum(1).square().sum(-1) - color.square().sum((1, 2))
    return together.mean() / layers**2
