"""The proposal: a coarse grid of densities that learns to enclose those of the field, and says where rays are sampled.

Barron et al., "Mip-NeRF 360" (2022), section 3: a proposal is distilled while the field is trained. Here it is a dense
grid over contracted space, which is cheap to evaluate at many points, so that the field is evaluated at few.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from neural_fields.volume.rays import Rays, contract_space, edges_around_samples, rendering_weights, sample_pdf


@dataclass(frozen=True)
class ProposalSettings:
    """Settings of the proposal and of densities."""

    annealing_slope: float = 10.0  # mip-NeRF 360, section 4
    uniform_share: float = 0.01  # of the field's samples are drawn evenly, also where the proposal has nothing
    max_log_density: float = 12.0  # opaque within any interval, and far from overflow
    initial_log_density: float = -1.0  # of the grid, in units of one over the scene's radius


DEFAULTS = ProposalSettings()


@dataclass(frozen=True)
class RayIntervals:
    """Holds the intervals into which rays were divided, in the spacing of `distance_to_spacing`.

    Attributes:
        edges: of the field's intervals, rising from 0 to 1.
        proposed_edges: of the proposal's histogram, from which the intervals were drawn, rising from 0 to 1.
        proposed_weights: of the proposal's histogram, at least 0.
    """

    edges: Float[Tensor, "rays edges"]
    proposed_edges: Float[Tensor, "rays proposed_edges"]
    proposed_weights: Float[Tensor, "rays proposed_intervals"]


def distance_to_spacing(distance: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Maps distances along a ray to spacing in [0, 1]: linear up to distance 1, then linear in disparity.

    Args:
        distance: in units of the scene's radius, 0 to infinity.

    Returns:
        The spacing, 0 to 1.

    Example:
        >>> distance_to_spacing(torch.tensor([0.0, 1.0, 2.0])).tolist()
        [0.0, 0.5, 0.75]
    """
    return torch.where(distance < 1, distance / 2, 1 - 0.5 / distance.clamp_min(1))


def spacing_to_distance(spacing: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Maps spacing in [0, 1] to distances: the inverse of `distance_to_spacing`."""
    return torch.where(spacing < 0.5, 2 * spacing, 0.5 / (1 - spacing).clamp(1e-6, 0.5))


def annealing_exponent(progress: float, settings: ProposalSettings = DEFAULTS) -> float:
    """Computes the exponent of the proposed weights: 0 treats all intervals alike, 1 keeps the weights.

    Mip-NeRF 360, section 4.

    Args:
        progress: of the training, 0 to 1.
        settings: the slope of the annealing.

    Example:
        >>> annealing_exponent(0.0), annealing_exponent(1.0)
        (0.0, 1.0)
    """
    slope = settings.annealing_slope
    return slope * progress / ((slope - 1) * progress + 1)


def activate_density(raw: Float[Tensor, "*any"], settings: ProposalSettings = DEFAULTS) -> Float[Tensor, "*any"]:
    """Turns values of a grid or network into densities: an exponential, which reaches that of a wall in few steps."""
    return torch.exp(raw.clamp(max=settings.max_log_density))


class ProposalGrid(nn.Module):
    """Densities on a dense grid over contracted space, in units of one over the scene's radius.

    Args:
        resolution: vertices along each axis of the cube from -2 to 2.
        settings: of the proposal.
    """

    def __init__(self, resolution: int, settings: ProposalSettings = DEFAULTS) -> None:
        super().__init__()
        self.settings = settings
        shape = (1, 1, resolution, resolution, resolution)
        self.raw = nn.Parameter(torch.full(shape, settings.initial_log_density))

    def density_at(self, points: Float[Tensor, "*rays 3"]) -> Float[Tensor, "*rays"]:
        """Reads densities at points of contracted space."""
        place = (points / 2).view(1, -1, 1, 1, 3)
        values = F.grid_sample(self.raw, place, padding_mode="border", align_corners=True)
        return activate_density(values.view(points.shape[:-1]), self.settings)

    def divide_rays(
        self,
        rays: Rays,
        span: tuple[float, float],
        counts: tuple[int, int],
        exponent: float,
        generator: torch.Generator | None,
    ) -> RayIntervals:
        """Divides rays into intervals that are short where something is seen.

        Args:
            rays: in units of the scene's radius, around its center.
            span: distances at which they start and end.
            counts: intervals that are tried, and that are returned.
            exponent: of the proposed weights, see `annealing_exponent`.
            generator: moves the intervals, as in `sample_pdf`.
        """
        start, end = distance_to_spacing(torch.tensor(span)).tolist()
        whole = rays.origin.new_tensor([[start, end]]).expand(len(rays), 2)
        trial_edges = edges_around_samples(
            sample_pdf(whole, torch.ones_like(whole[:, :1]), counts[0], generator), start, end
        )
        distance = spacing_to_distance(trial_edges)
        middle = (distance[:, 1:] + distance[:, :-1]) / 2
        weights = rendering_weights(self.density_at(contract_space(rays.points_at(middle))) * distance.diff(dim=1))
        histogram = (weights.detach() + self.settings.uniform_share / counts[0]) ** exponent
        samples = sample_pdf(trial_edges, histogram, counts[1], generator)
        return RayIntervals(edges_around_samples(samples, start, end), trial_edges, weights)
