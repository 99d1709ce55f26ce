"""The scene without the person: a field on a hash grid over contracted space, with a code for each state of the scene.

HOSNeRF's first stage (Liu et al. 2023, section 3.3) is mip-NeRF 360 with a code for each state of the carried object;
here hash grids (Müller et al. 2022) and one proposal grid take the place of its large networks. Inside the
field lengths are in units of the scene's radius; rays that come in and samples that go out are in the world's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from neural_fields.config_volume import BackgroundConfig, VolumeTerms
from neural_fields.data.cameras import Camera
from neural_fields.data.capture import Capture
from neural_fields.encodings.hash_grid import HashGrid
from neural_fields.encodings.hash_layout import HashGridConfig, growth_to
from neural_fields.volume.paint import Paint
from neural_fields.volume.proposal import Proposal, Stretches, annealing, positive, stretch
from neural_fields.volume.rays import (
    Marched,
    Rays,
    ViewRays,
    contract,
    march_weights,
    optical_thickness,
    render_marched,
)
from neural_fields.volume.terms import distortion, interlevel, squared

_HARMONICS = 9  # of degree 0 to 2
_CODE = 0.1  # spread of the numbers of a state's code at the start


@dataclass(frozen=True)
class Frame:
    """Where a scene is: the ball that is not contracted, in world units."""

    centre: tuple[float, float, float]
    radius: float


def frame_of(capture: Capture) -> Frame:
    """The smallest box around all cameras and joints, as a ball around its centre that reaches the farthest of them."""
    points = np.stack([camera.position for camera in capture.cameras])
    if capture.motion is not None:
        points = np.concatenate([points, *(capture.motion.joints(time) for time in sorted(set(capture.times)))])
    centre = (points.min(axis=0) + points.max(axis=0)) / 2
    radius = float(np.linalg.norm(points - centre, axis=1).max())
    x, y, z = centre.tolist()
    return Frame((x, y, z), radius if radius > 1e-6 else 1.0)  # one camera and nobody: any scale does


def harmonics(direction: Float[Tensor, "rays 3"]) -> Float[Tensor, "rays 9"]:
    """Spherical harmonics of degree 0 to 2, up to constant factors."""
    x, y, z = direction.unbind(dim=1)
    bands = [torch.ones_like(x), x, y, z, x * y, y * z, x * z, x * x - y * y, 3 * z * z - 1]
    return torch.stack(bands, dim=1)


class Background(nn.Module):
    """Density and colour of a scene that stands still within each of its states.

    Args:
        states: how many there are.

    Attributes:
        paint: of an edit; see `volume.paint`.
    """

    centre: Tensor
    radius: Tensor
    paint: Paint | None

    def __init__(self, frame: Frame, states: int = 1, config: BackgroundConfig | None = None) -> None:
        super().__init__()
        self.config = shape = config or BackgroundConfig()
        self.frame = frame
        growth = growth_to(shape.finest, shape.base_resolution, shape.n_levels)
        self.grid = HashGrid(
            3, HashGridConfig(shape.n_levels, shape.n_features, shape.log2_table, shape.base_resolution, growth)
        )
        self.proposal = Proposal(shape.proposal_resolution)
        # A code weighs the features of the grid, so that some of them can become one state's own, and is constant along
        # a ray: reading it beside the features is adding a linear function of it to the hidden layer. Small codes make
        # states start nearly alike, and what one of them does not show is taken from the others.
        self.codes = nn.Parameter(_CODE * torch.randn(states, shape.state_code))
        self.feature_state = nn.Linear(shape.state_code, self.grid.out_dim, bias=False)
        self.place = nn.Linear(self.grid.out_dim, shape.width)
        self.place_state = nn.Linear(shape.state_code, shape.width, bias=False)
        self.geometry = nn.Linear(shape.width, 1 + shape.geometry)
        self.color = nn.Linear(shape.geometry, shape.width)
        self.color_state = nn.Linear(shape.state_code, shape.width, bias=False)
        self.color_view = nn.Linear(_HARMONICS, shape.width, bias=False)
        self.rgb = nn.Linear(shape.width, 3)
        self.sky_color = nn.Linear(_HARMONICS, 3)
        self.sky_state = nn.Linear(shape.state_code, 3, bias=False)
        # Colours start the same from all sides: views far from the path are then guessed from geometry.
        for layer in (self.color_view, self.sky_color):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.sky_color.bias)
        self.register_buffer("centre", torch.tensor(frame.centre))
        self.register_buffer("radius", torch.tensor(frame.radius))
        self.paint = None

    def parameter_groups(self) -> list[dict]:
        """Parameters and learning rates for an optimiser."""
        named = dict(self.named_parameters())
        grids = {"grid.params": 8e-2, "proposal.raw": 5e-2, "color_view.weight": 5e-4}
        networks = {"params": [tensor for name, tensor in named.items() if name not in grids], "lr": 5e-3}
        return [networks, *({"params": [named[name]], "lr": rate} for name, rate in grids.items())]

    def march(
        self,
        rays: Rays,
        state: Int[Tensor, " rays"],
        generator: torch.Generator | None = None,
        exponent: float = 1.0,
        unseen: float = 0.0,
    ) -> tuple[Marched, Stretches]:
        """What the field says along rays, and how these were divided.

        Args:
            state: of the scene, for each ray.
            generator: moves samples along their rays; None for the same samples every time.
            exponent: of the proposed weights, see `annealing`.
            unseen: samples with less weight than this stay black, which saves most of the work of their colours.
        """
        shape = self.config
        local = Rays((rays.origin - self.centre) / self.radius, rays.direction, rays.time)
        counts = (shape.proposed, shape.samples)
        stretches = self.proposal.divide(local, (shape.near, shape.far), counts, exponent, generator)
        distance = stretch(stretches.edges)
        middle, length = (distance[:, 1:] + distance[:, :-1]) / 2, distance.diff(dim=1)
        points = contract(local.at(middle))
        density, geometry = self._geometry(points, state)
        beside = self.color_view(harmonics(rays.direction)) + self.color_state(self.codes)[state]
        if unseen > 0:
            seen = march_weights(density * length) > unseen
            color = torch.zeros_like(geometry[..., :3])
            color[seen] = self._color(geometry[seen], beside[seen.nonzero()[:, 0]], points[seen])
        else:
            seen = torch.ones_like(density, dtype=torch.bool)
            color = self._color(geometry, beside[:, None], points)
        radius = self.radius
        return Marched(middle * radius, length * radius, density / radius, color, torch.ones_like(seen)), stretches

    def sky(self, rays: Rays, state: Int[Tensor, " rays"]) -> Float[Tensor, "rays 3"]:
        """Colours behind everything."""
        raw = self.sky_color(harmonics(rays.direction)) + self.sky_state(self.codes)[state]
        return torch.sigmoid(raw if self.paint is None else raw + self.paint(rays.direction / 2 + 0.5))

    def density(self, points: Float[Tensor, "points 3"], state: Int[Tensor, " points"]) -> Float[Tensor, " points"]:
        """Density at points of the world, for a unit of its length."""
        local = contract((points - self.centre) / self.radius)
        return self._geometry(local[:, None], state)[0][:, 0] / self.radius

    def _geometry(self, points: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Density [N, S] and features [N, S, G] at contracted points [N, S, 3]."""
        features = self.grid(points.reshape(-1, 3) / 4 + 0.5).view(*points.shape[:2], -1)
        features = features * (1 + self.feature_state(self.codes))[state][:, None]
        hidden = self.place(features) + self.place_state(self.codes)[state][:, None]
        raw, geometry = self.geometry(torch.relu(hidden)).split([1, self.config.geometry], dim=-1)
        return positive(raw[..., 0] - 1), geometry

    def _color(self, geometry: Tensor, beside: Tensor, points: Tensor) -> Tensor:
        """Colours [..., 3] of features [..., G] at contracted points [..., 3]."""
        raw = self.rgb(torch.relu(self.color(geometry) + beside))
        if self.paint is None:
            return torch.sigmoid(raw)
        return torch.sigmoid(raw + self.paint(points.reshape(-1, 3) / 4 + 0.5).view_as(raw))


def background_terms(
    field: Background,
    rays: Rays,
    state: Int[Tensor, " rays"],
    wanted: Float[Tensor, "rays 3"],
    progress: float,
    generator: torch.Generator,
    weights: VolumeTerms | None = None,
) -> dict[str, Tensor]:
    """The terms of one step of the background's fit, weighted.

    Args:
        rays: of pixels that do not show the person.
        wanted: their colours in [0, 1].
        progress: the part of the fit that is done, from 0 to 1.
    """
    weights = weights or VolumeTerms()
    marched, stretches = field.march(rays, state, generator, annealing(min(1.0, 5 * progress)))
    shown = render_marched(marched)
    proposed = (stretches.proposed_edges, stretches.proposed_weights)
    return {
        "color": squared(shown.over(field.sky(rays, state)), wanted),
        "interlevel": weights.interlevel * interlevel(stretches.edges, shown.weights, *proposed),
        "distortion": weights.distortion * distortion(stretches.edges, shown.weights),
        "opacity": weights.opacity * (1 - shown.opacity).mean(),
        "clearance": weights.clearance * clearance(field, rays[::4], state[::4], generator),  # a few points do
    }


def clearance(
    field: Background, rays: Rays, state: Int[Tensor, " rays"], generator: torch.Generator
) -> Float[Tensor, ""]:
    """How much light the field takes away before the near plane, where no camera can have anything."""
    near = field.config.near * field.frame.radius
    share = torch.rand(len(rays), 1, generator=generator, device=generator.device).to(rays.origin.device)
    density = field.density(rays.at(share * near)[:, 0], state)
    return -torch.expm1(-density * near).mean()


@torch.no_grad()
def blocked_views(
    field: Background, cameras: Sequence[Camera], states: Sequence[int], share: float = 0.5, rays: int = 256
) -> list[int]:
    """Views whose camera is inside something or right before it, so that they see nothing else.

    Of such a view at least `share` of the light ends within one more near distance behind the near plane.
    """
    device = field.centre.device
    found, limit = [], 2 * field.config.near * field.frame.radius
    for index, (camera, state) in enumerate(zip(cameras, states, strict=True)):
        pixel = torch.linspace(0, camera.width * camera.height - 1, rays, device=device).long()
        seen = ViewRays([camera], [0], device)(torch.zeros_like(pixel), pixel)
        marched, _ = field.march(seen, torch.full_like(pixel, state), unseen=1.0)
        thickness = (optical_thickness(marched) * (marched.depth < limit)).sum(dim=1)
        if -torch.expm1(-thickness).mean() >= share:
            found.append(index)
    return found
