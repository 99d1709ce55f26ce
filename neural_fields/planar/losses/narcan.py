"""Losses of "NaRCan: Natural Refined Canonical Image with Integration of Diffusion Prior" (Chen et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from neural_fields.data.dataset import Batch
from neural_fields.planar.appearance.mask_opacity import MaskOpacityConfig
from neural_fields.planar.appearance.window_opacity import WindowOpacityConfig
from neural_fields.planar.composition.model import PlanarModel
from neural_fields.planar.composition.samples import LayerSamples
from neural_fields.planar.losses.loss import Loss, LossWeightGroup
from neural_fields.planar.mappings.homography_mlp import ChartMapping, HomographyMlpMappingConfig


@dataclass(frozen=True)
class NarcanWeights(LossWeightGroup):
    """Holds the weights of the losses of NaRCan."""

    color_l1: float = 0.0  # mean absolute error of each layer's own color where it is visible at all; layers are added
    residual_jacobian: float = 0.0  # mean size of the derivatives of the residual by x, y and t


def color_l1_loss(samples: LayerSamples, batch: Batch) -> Float[Tensor, ""]:
    """Computes the mean absolute error, over points and channels, of each layer's color where the layer is visible.

    Layers are added. Where layers fade into each other, each of them must match the frame by itself, like charts that
    are trained one by one.

    Args:
        samples: of the model at the batch's points.
        batch: points of the clip with their colors.
    """
    error = (samples.lit_color - batch.rgb.to(samples.color.device)[:, None]).abs().mean(dim=2)
    return (error * (samples.weight > 0)).sum() / len(error)


def residual_jacobian_loss(model: PlanarModel, batch: Batch) -> Float[Tensor, ""]:
    """Computes the mean absolute derivative of the residuals by x, y and t in their charts; layers are added (NaRCan).

    Args:
        model: its mappings are of kind `homography_mlp`.
        batch: points of the clip.
    """
    xyt = batch.xyt.to(model.device)
    mappings = cast("Sequence[ChartMapping]", model.mappings)
    return torch.stack([mapping.residual_jacobian(xyt) for mapping in mappings]).sum()


COLOR_L1 = Loss(
    "color_l1",
    lambda at: color_l1_loss(at.samples, at.batch),
    opacity=(MaskOpacityConfig, WindowOpacityConfig),  # which say where a layer is visible at all
)
RESIDUAL_JACOBIAN = Loss(
    "residual_jacobian",
    lambda at: residual_jacobian_loss(at.model, at.batch),
    mapping=(HomographyMlpMappingConfig,),
)
