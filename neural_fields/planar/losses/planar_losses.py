"""The losses of the planar family that look at the batch's own points, or at a table alone.

Each function returns one unweighted scalar; `objective.compute_losses` weights and joins them. Lengths are measured in
units of xy (the longer side of the frame is 2) or in pixels, so that no loss depends on which side is the longer one.
"LNA" is Kasten et al., "Layered Neural Atlases for Consistent Video Editing" (2021); "CoDeF" is Ouyang et al., "CoDeF:
Content Deformation Fields for Temporally Consistent Video Processing" (2024). Losses that look at other points than the
batch's own (a pixel further, where the flow leads) are in `neighbors`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from neural_fields.data.dataset import Batch
from neural_fields.planar.appearance.gain import GridGain
from neural_fields.planar.appearance.texture import ImageTexture
from neural_fields.planar.mappings.homography_mlp import ChartMapping
from neural_fields.planar.mappings.mapping import GridMapping
from neural_fields.planar.model import PlanarModel
from neural_fields.planar.samples import LayerSamples, composite_layers

MASK_CLAMP = 1e-4  # weights count as no nearer to 0 or 1 than this, so that the cross-entropy stays finite


def color_loss(samples: LayerSamples, batch: Batch) -> Float[Tensor, ""]:
    """Computes the mean squared error of the composite, over points and channels."""
    return F.mse_loss(composite_layers(samples), batch.rgb.to(samples.color.device))


def color_l1_loss(samples: LayerSamples, batch: Batch) -> Float[Tensor, ""]:
    """Computes the mean absolute error, over points and channels, of each layer's own color where it is visible.

    Layers are added. Layers that fade into each other each have to show the frame alone, as charts that are trained one
    by one do.
    """
    error = (samples.lit_color - batch.rgb.to(samples.color.device)[:, None]).abs().mean(dim=2)
    return (error * (samples.weight > 0)).sum() / len(error)


def mask_loss(samples: LayerSamples, masks: Float[Tensor, "n front"]) -> Float[Tensor, ""]:
    """Computes the binary cross-entropy of the front layers' weights against the visible parts of their masks (LNA)."""
    masks = masks.to(samples.weight.device)
    hidden = torch.cumsum(masks, dim=1) - masks  # masks of the layers in front
    visible = masks * (hidden == 0)
    weight = samples.weight[:, : masks.shape[1]].clamp(MASK_CLAMP, 1 - MASK_CLAMP)
    return F.binary_cross_entropy(weight, visible)


def sparsity_loss(samples: LayerSamples) -> Float[Tensor, ""]:
    """Computes the mean square, over points and channels, of each front layer's color where light passes it (LNA).

    With one front layer that is (1 - alpha) times its color, without its gain; a layer further back counts where those
    before it let light pass. Layers are added.
    """
    front = samples.weight[:, :-1]
    passed = 1 - torch.cumsum(front, dim=1)  # the light that passes each front layer
    return (samples.color[:, :-1] * passed[..., None]).square().mean(dim=(0, 2)).sum()


def sobel_loss(samples: LayerSamples, batch: Batch) -> Float[Tensor, ""]:
    """Computes the mean absolute difference of the gray Sobel gradients of each layer and of the frame.

    CoDeF; whole frames only. Only pixels where the layer is visible count. x and y are averaged, layers are added, and
    each layer counts with the share of the frame that it fills. Beyond the edge both pictures are black, as in CoDeF's
    code.
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
    """Computes the mean squared error of each layer's own color where it is not visible (CoDeF).

    Texels that no pixel shows stay natural. Layers are added, each with the share of the frame that it fills: then one
    step of CoDeF on that layer alone differs by that factor only, which Adam does not see.
    """
    weight = samples.weight.detach()
    error = (samples.lit_color - batch.rgb.to(weight.device)[:, None]).square().mean(dim=2)
    outside = 1 - weight
    per_layer = (error * outside).sum(0) / outside.sum(0).clamp(min=1)
    return (per_layer * weight.mean(0)).sum()


def texture_smoothness_loss(model: PlanarModel) -> Float[Tensor, ""]:
    """Computes squared differences of adjacent texels, layers added: texels between pixels follow those around them."""
    textures = cast("Sequence[ImageTexture]", model.textures)
    return torch.stack([texture.compute_roughness() for texture in textures]).sum()


def residual_anchor_loss(model: PlanarModel, batch: Batch) -> Float[Tensor, ""]:
    """Computes the mean squared distance, in pixels, of the residual grids from their start; layers are added."""
    frames = batch.frames.to(model.device)
    mappings = cast("Sequence[GridMapping]", model.mappings)
    return torch.stack([mapping.residual_anchor(frames) for mapping in mappings]).sum()


def residual_smoothness_loss(model: PlanarModel, batch: Batch) -> Float[Tensor, ""]:
    """Computes squared differences of neighboring shifts of the residual grids, in pixels, layers added."""
    frames = batch.frames.to(model.device)
    mappings = cast("Sequence[GridMapping]", model.mappings)
    return torch.stack([mapping.residual_smoothness(frames) for mapping in mappings]).sum()


def residual_jacobian_loss(model: PlanarModel, batch: Batch) -> Float[Tensor, ""]:
    """Computes the mean absolute derivative of the residuals by x, y and t in their charts; layers added (NaRCan)."""
    xyt = batch.xyt.to(model.device)
    mappings = cast(Sequence[ChartMapping], model.mappings)
    return torch.stack([mapping.residual_jacobian(xyt) for mapping in mappings]).sum()


def gain_size_and_steps_losses(model: PlanarModel, batch: Batch) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Computes the squared logarithm of the gains, and of its differences between neighboring cells, layers added."""
    frames = batch.frames.to(model.device)
    gains = cast("Sequence[GridGain]", model.gains)
    parts = [gain.compute_size_and_steps(frames) for gain in gains]
    size, steps = (torch.stack(values).sum() for values in zip(*parts, strict=True))
    return size, steps
