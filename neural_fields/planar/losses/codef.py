"""Losses of "CoDeF: Content Deformation Fields for Temporally Consistent Video Processing" (Ouyang et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from neural_fields.data.dataset import Batch
from neural_fields.planar.composition.model import PlanarModel
from neural_fields.planar.composition.samples import LayerSamples
from neural_fields.planar.losses.flow_matches import FlowMatches
from neural_fields.planar.losses.loss import Loss, LossWeightGroup
from neural_fields.planar.mappings.mapping import PointFunction


@dataclass(frozen=True)
class CodefWeights(LossWeightGroup):
    """Holds the weights of the losses of CoDeF."""

    sobel: float = 0.0  # mean absolute error of the gray Sobel gradients, each layer where it is visible
    flow_l1: float = 0.0  # as `flow`, forward only, mean of |du| and |dv| in widths and heights of the frame
    background_color: float = 0.0  # color error of a layer where it is hidden, so that hidden texels stay natural


def sobel_loss(samples: LayerSamples, batch: Batch) -> Float[Tensor, ""]:
    """Computes the mean absolute difference of the gray Sobel gradients of each layer and of the frame.

    The batch must be whole frames. Only pixels where the layer is visible count. x and y are averaged, layers are
    added, and each layer is weighted by the share of the frame that it fills. Both pictures are black beyond their
    edges, as in CoDeF's code.

    Args:
        samples: of the model at the batch's points.
        batch: whole frames with their colors.
    """
    width, height = batch.clip.size
    luma = samples.color.new_tensor((0.299, 0.587, 0.114))  # Rec. 601, as CoDeF's code has it
    truth = _sobel_gradients((batch.rgb.to(luma.device) @ luma).view(-1, 1, height, width))
    shown = (samples.lit_color @ luma).T.reshape(-1, 1, height, width)  # layer by layer, frame by frame
    layers = samples.weight.shape[1]
    difference = (_sobel_gradients(shown).view(layers, -1, 2, height, width) - truth).abs().mean(dim=2)
    weight = samples.weight.detach().T.reshape(layers, -1, height, width)
    return (difference * weight).sum() / len(samples.weight)


def _sobel_gradients(image: Float[Tensor, "batch 1 height width"]) -> Float[Tensor, "batch 2 height width"]:
    """Computes Sobel's x and y gradients."""
    x = image.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    return F.conv2d(image, torch.stack([x, x.T])[:, None], padding=1)


def background_color_loss(samples: LayerSamples, batch: Batch) -> Float[Tensor, ""]:
    """Computes the mean squared error of each layer's color where the layer is not visible (CoDeF).

    It keeps texels natural that no pixel shows. Layers are added, each weighted by the share of the frame that it
    fills: a step then differs from a step of CoDeF on that layer alone by this factor only, which Adam cancels.

    Args:
        samples: of the model at the batch's points.
        batch: points of the clip with their colors.
    """
    weight = samples.weight.detach()
    error = (samples.lit_color - batch.rgb.to(weight.device)[:, None]).square().mean(dim=2)
    outside = 1 - weight
    per_layer = (error * outside).sum(0) / outside.sum(0).clamp(min=1)
    return (per_layer * weight.mean(0)).sum()


def flow_l1_loss(
    model: PlanarModel, batch: Batch, samples: LayerSamples, matches: list[FlowMatches]
) -> Float[Tensor, ""]:
    """Computes the mean absolute difference of the canonical points of forward matches inside each layer (CoDeF).

    The unit is widths and heights of the frame; it is the mean over both components. Layers are added, each weighted by
    the share of the frame that it fills (see `background_color_loss`). The paper's code divides x by the height and y
    by the width.

    Args:
        model: its mappings are evaluated at the matched points.
        batch: points of the clip.
        samples: of the model at the batch's points.
        matches: of the batch's points in neighboring frames; only forward ones are used.
    """
    assert samples.uv is not None
    width, height = batch.clip.size
    extent = samples.uv.new_tensor([2 * width, 2 * height]) / max(width, height)
    total = samples.uv.new_zeros(())
    for match in matches:
        if not match.forward:
            continue
        found, there = match.row.to(total.device), match.xyt.to(total.device)
        for number, mapping in enumerate(model.mappings):
            weight = samples.weight[:, number].detach()
            inside = (weight[found] > 0).nonzero()[:, 0]  # hard masks: each match is looked up in one layer only
            row, seen = found[inside], weight[found[inside]]
            difference = ((mapping(there[inside]) - samples.uv[row, number]) / extent).abs().mean(dim=1)
            total = total + weight.mean() * (difference * seen).sum() / seen.sum().clamp(min=1)
    return total


SOBEL = Loss("sobel", lambda at: sobel_loss(at.samples, at.batch), whole_frames=True)
BACKGROUND_COLOR = Loss("background_color", lambda at: background_color_loss(at.samples, at.batch), front=True)
FLOW_L1 = Loss(
    "flow_l1",
    lambda at: flow_l1_loss(at.model, at.batch, at.samples, at.matches),
    flow=True,
    mapping=(PointFunction,),
)
