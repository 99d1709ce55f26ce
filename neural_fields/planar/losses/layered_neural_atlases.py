"""Losses of "Layered Neural Atlases for Consistent Video Editing" (Kasten et al. 2021, "LNA").

Some losses evaluate the model at further points: at neighboring pixels, or along the flow. Distances are pixels of the
training size, as in the paper: a pixel is 2 / L in xy units, where L is the longer side of the frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from neural_fields.config.presets import require_valid
from neural_fields.data.dataset import Batch
from neural_fields.planar.appearance.opacity import compute_layer_weights
from neural_fields.planar.composition.model import PlanarModel
from neural_fields.planar.composition.samples import LayerSamples, composite_layers
from neural_fields.planar.losses.flow_matches import FlowMatches
from neural_fields.planar.losses.loss import Loss, LossInputs, LossWeightGroup
from neural_fields.planar.mappings.mapping import PointFunction

MASK_CLAMP = 1e-4  # weights count as no nearer to 0 or 1 than this, so that the cross-entropy stays finite


@dataclass(frozen=True)
class LayeredAtlasWeights(LossWeightGroup):
    """Holds the weights of the losses of Layered Neural Atlases."""

    color: float = 0.0  # mean squared error of the color
    gradient: float = 0.0  # mean squared error of the forward differences of the color, x and y added
    mask: float = 0.0  # binary cross-entropy of the opacities against the masks
    mask_until: int = 0  # 0: to the end
    sparsity: float = 0.0  # squared color of front layers where they are transparent
    rigidity: float = 0.0  # departure of the mapping's Jacobian from a rotation, over 1 pixel
    global_rigidity: tuple[float, ...] = ()  # the same over 100 pixels: front layers, background
    global_rigidity_until: int = 0  # 0: to the end
    flow: float = 0.0  # distance in the canonical of the points that optical flow matches, in pixels
    alpha_flow: float = 0.0  # change of opacity along the flow

    def __post_init__(self) -> None:
        require_valid(
            len(self.global_rigidity) in (0, 2), "global_rigidity takes two numbers: front layers, background"
        )


def color_loss(samples: LayerSamples, batch: Batch) -> Float[Tensor, ""]:
    """Computes the mean squared error of the composite, over points and channels.

    Args:
        samples: of the model at the batch's points.
        batch: points of the clip with their colors.
    """
    return F.mse_loss(composite_layers(samples), batch.rgb.to(samples.color.device))


def find_visible_parts(masks: Float[Tensor, "*n"], dim: int) -> Float[Tensor, "*n"]:
    """Computes the visible parts of masks: each gets at most what those in front leave (see `settle_front_to_back`).

    Args:
        masks: 0 to 1; the layers along `dim`, front to back.
        dim: the dimension of the layers.

    Example:
        >>> find_visible_parts(torch.tensor([0.25, 1.0, 0.5]), 0).tolist()
        [0.25, 0.75, 0.0]
    """
    hidden = torch.cumsum(masks, dim=dim) - masks  # masks of the layers in front
    return torch.minimum(masks, (1 - hidden).clamp_min(0))


def mask_loss(samples: LayerSamples, masks: Float[Tensor, "n front"]) -> Float[Tensor, ""]:
    """Computes the binary cross-entropy of the front layers' weights against the visible parts of their masks (LNA).

    Args:
        samples: of the model at the batch's points.
        masks: of the front layers at these points, front to back, 0 to 1.
    """
    visible = find_visible_parts(masks.to(samples.weight.device), dim=1)
    weight = samples.weight[:, : masks.shape[1]].clamp(MASK_CLAMP, 1 - MASK_CLAMP)
    return F.binary_cross_entropy(weight, visible)


def sparsity_loss(samples: LayerSamples) -> Float[Tensor, ""]:
    """Computes the mean square, over points and channels, of each front layer's color where it is transparent (LNA).

    With a single front layer, the color is weighted by 1 - alpha, without its gain; a layer further back is weighted by
    the light that passes it and the layers before it. Layers are added.

    Args:
        samples: of the model at the batch's points.
    """
    front = samples.weight[:, :-1]
    passed = 1 - torch.cumsum(front, dim=1)  # the light that passes each front layer
    return (samples.color[:, :-1] * passed[..., None]).square().mean(dim=(0, 2)).sum()


# --- at neighboring pixels --------------------------------------------------------------------------------------------


def gradient_loss(model: PlanarModel, batch: Batch, samples: LayerSamples) -> Float[Tensor, ""]:
    """Computes the squared error of the forward differences of the composite in x and y (LNA, equation 7).

    It is the mean over points and channels; x and y are added. The model is evaluated once more, one pixel further.
    Both axes are measured in pixels; the paper's code divides both by the width, which is wrong for portrait clips.

    Args:
        model: evaluated at the neighboring pixels.
        batch: points of the clip with their colors.
        samples: of the model at the batch's points.
    """
    here, truth = composite_layers(samples), batch.rgb
    right, below = (_shifted_points(batch, dx, dy) for dx, dy in ((1.0, 0.0), (0.0, 1.0)))
    there = composite_layers(model(torch.cat([right, below]).to(here.device)))
    position = batch.positions
    beyond = torch.cat([batch.clip.colors_at(position + position.new_tensor(step)) for step in ((0, 0, 1), (0, 1, 0))])
    steps = (beyond - truth.repeat(2, 1)).to(here.device)
    return 2 * (there - here.repeat(2, 1) - steps).square().mean()


def _shifted_points(batch: Batch, dx: float, dy: float) -> Float[Tensor, "n 3"]:
    """Returns xyt of the batch's points, moved by (dx, dy) pixels."""
    position = batch.positions
    xy = position[:, [2, 1]] + torch.tensor([0.5 + dx, 0.5 + dy])
    return batch.normalize_positions(xy, position[:, 0])


def rigidity_loss(
    model: PlanarModel, batch: Batch, samples: LayerSamples, distance: float, weights: Sequence[float] = (1.0, 1.0)
) -> Float[Tensor, ""]:
    """Measures how much the mappings deviate from rotation and translation, over `distance` pixels (LNA, equation 9).

    It is the mean of |JtJ| + |(JtJ)^-1| (Frobenius norms), where J has the backward differences of uv in units of
    `distance` pixels times the mapping's `uv_scale`. The smallest value of a layer is 2 sqrt(2), for an orthogonal J.

    Args:
        model: its mappings are measured.
        batch: points of the clip.
        samples: of the model at the batch's points.
        distance: of the differences, in pixels.
        weights: the weight of each front layer, and of the background; layers are added.
    """
    assert samples.uv is not None
    left_and_above = [_shifted_points(batch, -distance, 0.0), _shifted_points(batch, 0.0, -distance)]
    before = torch.cat(left_and_above).to(samples.uv.device)
    pixel = 2 / max(batch.clip.size)
    total = samples.uv.new_zeros(())
    for number, mapping in enumerate(model.mappings):
        weight = weights[0] if number < len(model.layers) - 1 else weights[1]
        if weight:
            here = samples.uv[:, number]
            to_left, above = mapping(before).view(2, -1, 2)
            unit = mapping.uv_scale * pixel * distance
            jacobian = torch.stack([here - to_left, here - above], dim=2) / unit
            total = total + weight * measure_departure_from_rotation(jacobian).mean()
    return total


def measure_departure_from_rotation(jacobian: Float[Tensor, "n 2 2"]) -> Float[Tensor, " n"]:
    """Computes |JtJ| + |(JtJ)^-1| in Frobenius norms: about 2 sqrt(2) for an orthogonal J, more for any other.

    Args:
        jacobian: derivatives of uv, without unit.

    Example:
        >>> print(f"{measure_departure_from_rotation(torch.eye(2)[None]).item():.2f}")
        2.83
    """
    product = jacobian.transpose(1, 2) @ jacobian
    offset = 1e-3  # added to the diagonal before JtJ is inverted, as in LNA's code
    a, d = product[:, 0, 0] + offset, product[:, 1, 1] + offset
    b, c = product[:, 0, 1], product[:, 1, 0]
    adjugate = torch.stack([d, -b, -c, a], dim=1)
    inverse = adjugate / (a * d - b * c)[:, None]
    return product.flatten(1).norm(dim=1) + inverse.norm(dim=1)


def _global_rigidity(at: LossInputs) -> Float[Tensor, ""]:
    """Measures rigidity over 100 pixels, with weights of the front layers and of the background."""
    assert isinstance(at.weights, LayeredAtlasWeights)
    return rigidity_loss(at.model, at.batch, at.samples, 100.0, at.weights.global_rigidity)


# --- along the flow -------------------------------------------------------------------------------------------------


def flow_loss(model: PlanarModel, batch: Batch, samples: LayerSamples, matches: list[FlowMatches]) -> Float[Tensor, ""]:
    """Computes the distance of matched points on the canonical plane, in pixels (LNA, equation 11).

    The distance of each layer is weighted by its visibility; it is the mean over the matches, both directions are
    averaged, and layers are added.

    Args:
        model: its mappings are evaluated at the matched points.
        batch: points of the clip.
        samples: of the model at the batch's points.
        matches: of the batch's points in neighboring frames.
    """
    assert samples.uv is not None
    pixel = 2 / max(batch.clip.size)
    total = samples.uv.new_zeros(())
    for number, mapping in enumerate(model.mappings):
        for match in matches:
            row, there = match.row.to(total.device), mapping(match.xyt.to(total.device))
            unit = mapping.uv_scale * pixel
            distance = (there - samples.uv[row, number]).norm(dim=1) / unit
            total = total + (distance * samples.weight[row, number]).sum() / max(1, len(row)) / len(matches)
    return total


def alpha_flow_loss(model: PlanarModel, samples: LayerSamples, matches: list[FlowMatches]) -> Float[Tensor, ""]:
    """Computes the mean absolute change of the front layers' weights along the flow (LNA, equation 12).

    Both directions are averaged.

    Args:
        model: its opacity is evaluated at the matched points.
        samples: of the model at the batch's points.
        matches: of the batch's points in neighboring frames.
    """
    total = samples.weight.new_zeros(())
    for match in matches:
        row, there = match.row.to(total.device), match.xyt.to(total.device)
        change = compute_layer_weights(model.opacity(there))[:, :-1] - samples.weight[row, :-1]
        total = total + change.abs().sum() / max(1, change.numel()) / len(matches)
    return total


# --- requirements -------------------------------------------------------------------------------------------------

COLOR = Loss("color", lambda at: color_loss(at.held, at.batch))
MASK = Loss("mask", lambda at: mask_loss(at.samples, at.batch.layer_masks), front=True)
SPARSITY = Loss("sparsity", lambda at: sparsity_loss(at.samples), front=True)
GRADIENT = Loss(
    "gradient",
    lambda at: gradient_loss(at.model, at.batch, at.samples),
    mapping=(PointFunction,),
    opacity=(PointFunction,),
    gain=(PointFunction,),
)
RIGIDITY = Loss("rigidity", lambda at: rigidity_loss(at.model, at.batch, at.samples, 1.0), mapping=(PointFunction,))
GLOBAL_RIGIDITY = Loss("global_rigidity", _global_rigidity, mapping=(PointFunction,))
FLOW = Loss("flow", lambda at: flow_loss(at.model, at.batch, at.held, at.matches), flow=True, mapping=(PointFunction,))
ALPHA_FLOW = Loss(
    "alpha_flow",
    lambda at: alpha_flow_loss(at.model, at.samples, at.matches),
    front=True,
    flow=True,
    opacity=(PointFunction,),
)
