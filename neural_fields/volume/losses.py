"""Losses on rays. "mip-NeRF 360" is Barron et al., "Unbounded Anti-Aliased Neural Radiance Fields" (2022).

Each function returns an unweighted scalar. Edges are those of the intervals of a ray, from 0 to 1 in the spacing of
`proposal.distance_to_spacing`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def squared_error(rendered: Float[Tensor, "rays 3"], target: Float[Tensor, "rays 3"]) -> Float[Tensor, ""]:
    """Computes the mean squared difference of colors.

    Args:
        rendered: colors of the rays, RGB.
        target: true colors of the pixels, RGB in [0, 1].
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
