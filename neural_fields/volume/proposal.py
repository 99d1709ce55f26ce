"""Where along a ray to look: a coarse grid of densities that learns to enclose what the field has.

Barron et al., "Mip-NeRF 360" (2022), section 3: a proposal distilled while the field is fitted. Here it is one dense
grid over contracted space, which a step reads at many points for little, so that the field is asked at few.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from neural_fields.volume.rays import Rays, contract, edges_around, march_weights, sample_pdf

_ANNEALING = 10.0  # mip-NeRF 360, section 4
_EVERYWHERE = 0.01  # share of the field's samples that look where the proposal has nothing
_LOG_LARGEST = 12.0  # of densities: opaque within any stretch, and far from overflow
_EMPTY = -1.0  # log of the density that a grid starts with, in units of one over the scene's radius


@dataclass(frozen=True)
class Stretches:
    """How rays were divided; places are those of `squeeze`.

    Attributes:
        edges: of the field's stretches.
        proposed_edges, proposed_weights: the proposal's histogram, from which they were drawn.
    """

    edges: Float[Tensor, "rays edges"]
    proposed_edges: Float[Tensor, "rays proposed_edges"]
    proposed_weights: Float[Tensor, "rays proposed_stretches"]


def squeeze(distance: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Distances from 0 to infinity as places from 0 to 1: half of them up to distance 1, then even in disparity."""
    return torch.where(distance < 1, distance / 2, 1 - 0.5 / distance.clamp_min(1))


def stretch(place: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """The inverse of `squeeze`."""
    return torch.where(place < 0.5, 2 * place, 0.5 / (1 - place).clamp(1e-6, 0.5))


def annealing(progress: float) -> float:
    """Exponent of the proposed weights at a part of the fit: at 0 all places count alike, at 1 as proposed."""
    return _ANNEALING * progress / ((_ANNEALING - 1) * progress + 1)


def positive(raw: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Densities from what a grid or network gives: an exponential, which reaches a wall's in few steps."""
    return torch.exp(raw.clamp(max=_LOG_LARGEST))


class Proposal(nn.Module):
    """Densities on a dense grid over contracted space, in units of one over the scene's radius.

    Args:
        resolution: vertices along each axis of the cube from -2 to 2.
    """

    def __init__(self, resolution: int) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.full((1, 1, resolution, resolution, resolution), _EMPTY))

    def density(self, points: Float[Tensor, "*rays 3"]) -> Float[Tensor, "*rays"]:
        """Densities at points of contracted space."""
        place = (points / 2).view(1, -1, 1, 1, 3)
        found = F.grid_sample(self.raw, place, padding_mode="border", align_corners=True)
        return positive(found.view(points.shape[:-1]))

    def divide(
        self,
        rays: Rays,
        span: tuple[float, float],
        counts: tuple[int, int],
        exponent: float,
        generator: torch.Generator | None,
    ) -> Stretches:
        """Stretches of rays, short where something is seen.

        Args:
            rays: in units of the scene's radius, around its centre.
            span: distances at which they start and end.
            counts: stretches that are tried, and that are given.
            exponent: of the proposed weights, see `annealing`.
            generator: moves the stretches, as in `sample_pdf`.
        """
        start, end = squeeze(torch.tensor(span)).tolist()
        whole = rays.origin.new_tensor([[start, end]]).expand(len(rays), 2)
        tried = edges_around(sample_pdf(whole, torch.ones_like(whole[:, :1]), counts[0], generator), start, end)
        distance = stretch(tried)
        middle = (distance[:, 1:] + distance[:, :-1]) / 2
        weights = march_weights(self.density(contract(rays.at(middle))) * distance.diff(dim=1))
        drawn = (weights.detach() + _EVERYWHERE / counts[0]) ** exponent
        places = sample_pdf(tried, drawn, counts[1], generator)
        return Stretches(edges_around(places, start, end), tried, weights)
