"""Losses of "Deformable Sprites for Unsupervised Video Decomposition" (Ye et al. 2022), as in its code."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from neural_fields.data.dataset import Batch
from neural_fields.planar.composition.samples import LayerSamples, composite_layers
from neural_fields.planar.losses.loss import Loss, LossWeightGroup


@dataclass(frozen=True)
class DeformableSpritesWeights(LossWeightGroup):
    """Holds the weights of the losses of Deformable Sprites."""

    composite_l1: float = 0.0  # mean absolute error of the color
    laplacian: float = 0.0  # mean absolute error of the levels of a Laplacian pyramid of the color, levels added
    contrast: float = 0.0  # mean product of the colors that different layers have at a point
    opacity_from: int = 0  # step from which colors move the opacity; before, only terms that are about masks do


def composite_l1_loss(samples: LayerSamples, batch: Batch) -> Float[Tensor, ""]:
    """Computes the mean absolute error of the composite, over points and channels.

    Args:
        samples: of the model at the batch's points.
        batch: points of the clip with their colors.
    """
    return _composite_error(samples, batch).abs().mean()


def _composite_error(samples: LayerSamples, batch: Batch) -> Float[Tensor, "n 3"]:
    """Subtracts the frames from the composite."""
    return composite_layers(samples) - batch.rgb.to(samples.color.device)


def laplacian_loss(samples: LayerSamples, batch: Batch, levels: int = 3) -> Float[Tensor, ""]:
    """Computes the mean absolute error of the levels of a Laplacian pyramid of the composite; levels are added.

    Args:
        samples: of the model at the batch's points.
        batch: whole frames with their colors.
        levels: number of levels of the pyramid.
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

    It darkens a layer where another layer explains the picture. Pairs of a layer with itself count as 0, as in the
    paper's code.

    Args:
        samples: of the model at the batch's points.
    """
    layers = samples.color.shape[1]
    color = samples.color.clamp_min(0)  # pictures are not bounded, as the paper's networks are
    together = color.sum(1).square().sum(-1) - color.square().sum((1, 2))
    return together.mean() / layers**2


COMPOSITE_L1 = Loss("composite_l1", lambda at: composite_l1_loss(at.held, at.batch))
LAPLACIAN = Loss("laplacian", lambda at: laplacian_loss(at.held, at.batch), whole_frames=True)
CONTRAST = Loss("contrast", lambda at: contrast_loss(at.samples), front=True)
