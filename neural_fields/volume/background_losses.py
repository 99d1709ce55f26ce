"""Losses of the color and of the background.

"mip-NeRF 360" is Barron et al., "Unbounded Anti-Aliased Neural Radiance Fields" (2022). Edges are those of the
intervals of a ray, from 0 to 1 in the spacing of `proposal.distance_to_spacing`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from neural_fields.volume.background import BackgroundField
from neural_fields.volume.loss import SceneLoss, SceneLossInputs, SceneLossWeightGroup
from neural_fields.volume.rays import Rays


@dataclass(frozen=True)
class BackgroundLossWeights(SceneLossWeightGroup):
    """Holds the weights of the losses of the color and of the background."""

    color: float = 1.0  # mean squared error of the color
    interlevel: float = 0.1  # the proposal encloses the background's field (mip-NeRF 360, equation 13)
    distortion: float = 0.01  # the weights of a ray are close together (mip-NeRF 360, equation 15)
    opacity: float = 0.03  # rays end on a surface rather than on the sky
    clearance: float = 0.01  # the space between a camera and the near plane is empty


def color_loss(rendered: Float[Tensor, "rays 3"], target: Float[Tensor, "rays 3"]) -> Float[Tensor, ""]:
    """Computes the mean squared difference of colors.

    Args:
        rendered: colors of the rays, RGB.
        target: colors that they should have, RGB in [0, 1].
    """
    return (rendered - target).square().mean()


def distortion_loss(edges: Float[Tensor, "rays edges"], weights: Float[Tensor, "rays intervals"]) -> Float[Tensor, ""]:
    """Measures the spread of the weights along a ray (mip-NeRF 360, equation 15).

    The double sum over pairs is computed with running sums, in linear time in the number of intervals.

    Args:
        edges: of the intervals, rising from 0 to 1.
        weights: of the intervals in the rendered color, at least 0.

    Example:
        >>> edges, weights = torch.tensor([[0.0, 0.5, 1.0]]), torch.tensor([[0.5, 0.5]])
        >>> print(f"{distortion_loss(edges, weights).item():.3f}")
        0.333
    """
    middle = (edges[:, 1:] + edges[:, :-1]) / 2
    weight_before = weights.cumsum(dim=1) - weights
    moment_before = (weights * middle).cumsum(dim=1) - weights * middle
    between = 2 * (weights * (middle * weight_before - moment_before)).sum(dim=1)
    within = (weights.square() * edges.diff(dim=1)).sum(dim=1) / 3
    return (between + within).mean()


def interlevel_loss(
    edges: Float[Tensor, "rays edges"],
    weights: Float[Tensor, "rays intervals"],
    proposed_edges: Float[Tensor, "rays proposed_edges"],
    proposed_weights: Float[Tensor, "rays proposed_intervals"],
) -> Float[Tensor, ""]:
    """Measures by how much a field's weights exceed the proposed ones (mip-NeRF 360, equation 13).

    It trains only the proposal: no gradient flows to the field's weights.

    Args:
        edges: of the field's intervals, rising from 0 to 1.
        weights: of the field's intervals, at least 0.
        proposed_edges: of the proposal's histogram, rising from 0 to 1.
        proposed_weights: of the proposal's histogram, at least 0.
    """
    epsilon = 1e-7
    weights, edges = weights.detach(), edges.detach()
    total = torch.cat([torch.zeros_like(proposed_weights[:, :1]), proposed_weights.cumsum(dim=1)], dim=1)
    last = proposed_weights.shape[1]
    start = torch.searchsorted(proposed_edges, edges[:, :-1].contiguous(), right=True).sub(1).clamp(0, last)
    end = torch.searchsorted(proposed_edges, edges[:, 1:].contiguous()).clamp(0, last)
    bound = total.gather(1, end) - total.gather(1, start)
    return ((weights - bound).clamp_min(0).square() / (weights + epsilon)).sum(dim=1).mean()


def clearance_loss(
    field: BackgroundField, rays: Rays, state: Int[Tensor, " rays"], generator: torch.Generator
) -> Float[Tensor, ""]:
    """Computes the light that the field absorbs before the near plane, where there cannot be anything.

    Args:
        field: the background.
        rays: from cameras.
        state: of the scene, for each ray.
        generator: draws a point on each ray.
    """
    near = field.config.near * field.bounds.radius
    share = torch.rand(len(rays), 1, generator=generator, device=generator.device).to(rays.origin.device)
    density = field.density_at(rays.points_at(share * near)[:, 0], state)
    return -torch.expm1(-density * near).mean()


def _require_intervals(at: SceneLossInputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns edges and weights of the field's intervals on the rays, and those of the proposal."""
    intervals, weights = at.rendering.background_intervals, at.rendering.background_weights
    assert intervals is not None and weights is not None, "the background was rendered"
    return intervals.edges, weights, intervals.proposed_edges, intervals.proposed_weights


def _clearance_loss_of_step(at: SceneLossInputs) -> Float[Tensor, ""]:
    field = at.scene.background
    checked = slice(None, None, field.settings.clearance_stride)
    return clearance_loss(field, at.batch.rays[checked], at.state[checked], at.generator)


COLOR = SceneLoss("color", lambda at: color_loss(at.rendering.color, at.target))
INTERLEVEL = SceneLoss(
    "interlevel", lambda at: interlevel_loss(*_require_intervals(at)), stages=("background", "joint")
)
DISTORTION = SceneLoss(
    "distortion", lambda at: distortion_loss(*_require_intervals(at)[:2]), stages=("background", "joint")
)
OPACITY = SceneLoss("opacity", lambda at: (1 - at.rendering.opacity).mean(), stages=("background",))
CLEARANCE = SceneLoss("clearance", _clearance_loss_of_step, stages=("background",))
