"""Losses of "Deformable Sprites for Unsupervised Video Decomposition" (Ye et al. 2022), by its code."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from neural_fields.data.dataset import Batch
from neural_fields.planar.samples import LayerSamples, composite_layers


def composite_l1_loss(samples: LayerSamples, batch: Batch) -> Float[Tensor, ""]:
    """Computes the mean absolute error of the composite, over points and channels."""
    return _composite_error(samples, batch).abs().mean()


def _composite_error(samples: LayerSamples, batch: Batch) -> Float[Tensor, "n 3"]:
    """Subtracts the frames from the composite."""
    return composite_layers(samples) - batch.rgb.to(samples.color.device)


def laplacian_loss(samples: LayerSamples, batch: Batch, levels: int = 3) -> Float[Tensor, ""]:
    """Computes the mean absolute error of `levels` levels of the Laplacian pyramid of the composite, levels added.

    Whole frames only.
    """
    width, height = batch.clip.size
    error = _composite_error(samples, batch)  # pyramids are linear: the one of the error will do
    level = error.T.reshape(3, -1, height, width).movedim(1, 0)
    total = error.new_zeros(())
    for _ in range(levels):
        if min(level.shape[-2:]) < 2:
            break
        smaller = F.avg_pool2d(level, 2, ceil_mode=True, count_include_pad=False)
        band = level - F.interpolate(smaller, level.shape[-2:], mode="bilinear", align_corners=False)
        total, level = total + band.abs().mean(), smaller
    return total


def contrast_loss(samples: LayerSamples) -> Float[Tensor, ""]:
    """Computes the mean dot product of the colors that different layers have at a point, over all pairs of layers.

    A layer is dark where another one explains the picture. A layer's pairs with itself count as 0, as in the code.
    """
    layers = samples.color.shape[1]
    color = samples.color.clamp_min(0)  # pictures are not bounded, as the paper's networks are
    together = color.sum(1).square().sum(-1) - color.square().sum((1, 2))
    return together.mean() / layers**2
