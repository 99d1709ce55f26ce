"""The scene without the person: a field on a hash grid over contracted space, with a code for each state.

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

from neural_fields.data.capture.cameras import Camera
from neural_fields.data.capture.capture import Capture
from neural_fields.nn.hash_grid import HashGrid
from neural_fields.nn.hash_layout import HashGridConfig, compute_growth
from neural_fields.volume.color_edit import ColorPaint
from neural_fields.volume.proposal import (
    ProposalGrid,
    RayIntervals,
    activate_density,
    spacing_to_distance,
)
from neural_fields.volume.rays import (
    Rays,
    RaySamples,
    ViewRays,
    contract_space,
    optical_thickness,
    rendering_weights,
)


@dataclass(frozen=True)
class BackgroundConfig:
    """Sets the sizes of the background field. Lengths are in units of the scene's radius."""

    n_levels: int = 8  # grids, from coarse to fine
    n_features: int = 2  # features of a vertex
    log2_table: int = 17  # entries of a grid at most, as a power of two
    base_resolution: int = 16  # vertices of the coarsest grid along each axis; the grid spans four radii
    finest: int = 256  # vertices of the finest grid along each axis
    width: int = 32  # neurons of a hidden layer
    geometry: int = 15  # geometry features that the color network gets beside the direction
    state_code: int = 64  # length of the code of a state of the carried object; 64 in the paper
    proposed: int = 48  # intervals of a ray whose weights the proposal computes
    samples: int = 16  # intervals of a ray at which the field is evaluated
    proposal_resolution: int = 64  # vertices of the proposal's grid along each axis
    near: float = 0.05  # distance from the camera at which rays start; nothing is nearer
    far: float = 100.0  # distance at which rays end


@dataclass(frozen=True)
class BackgroundSettings:
    """Settings of the background's field and of its training."""

    code_spread: float = 0.1  # standard deviation of the numbers of a state's code at the start
    network_rate: float = 5e-3  # learning rates
    grid_rate: float = 8e-2
    proposal_rate: float = 5e-2
    view_color_rate: float = 5e-4  # of what makes colors depend on the direction
    annealing_speed: float = 5.0  # proposed weights count in full after this part of one over the stage
    clearance_stride: int = 4  # one in so many rays is checked for what is before the near plane
    blocked_share: float = 0.5  # of a view's light that ends right before the camera: then the view is blocked
    blocked_rays: int = 256  # of a view that are checked for it


DEFAULTS = BackgroundSettings()


@dataclass(frozen=True)
class SceneBounds:
    """Holds the bounds of a scene: the ball that is not contracted, in world units."""

    center: tuple[float, float, float]
    radius: float


def find_scene_bounds(capture: Capture) -> SceneBounds:
    """Computes a ball around the smallest box of all cameras and joints, that reaches the farthest of them."""
    points = np.stack([camera.position for camera in capture.cameras])
    if capture.motion is not None:
        points = np.concatenate(
            [points, *(capture.motion.compute_joint_positions(time) for time in sorted(set(capture.times)))]
        )
    center = (points.min(axis=0) + points.max(axis=0)) / 2
    radius = float(np.linalg.norm(points - center, axis=1).max())
    x, y, z = center.tolist()
    return SceneBounds((x, y, z), radius if radius > 1e-6 else 1.0)  # one camera and nobody: any scale does


def spherical_harmonics(direction: Float[Tensor, "rays 3"]) -> Float[Tensor, "rays 9"]:
    """Computes the spherical harmonics of degree 0 to 2, up to constant factors."""
    x, y, z = direction.unbind(dim=1)
    bands = [torch.ones_like(x), x, y, z, x * y, y * z, x * z, x * x - y * y, 3 * z * z - 1]
    return torch.stack(bands, dim=1)


class BackgroundField(nn.Module):
    """Computes density and color of a scene that is static within each of its states.

    Args:
        frame: the bounds of the scene.
        states: number of states.
        config: sizes.
        settings: of the field and of its training.

    Attributes:
        paint: of an edit; see `color_edit.py`.
    """

    center: Tensor
    radius: Tensor
    paint: ColorPaint | None

    def __init__(
        self,
        frame: SceneBounds,
        states: int = 1,
        config: BackgroundConfig | None = None,
        settings: BackgroundSettings = DEFAULTS,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.config = shape = config or BackgroundConfig()
        self.bounds = frame
        growth = compute_growth(shape.finest, shape.base_resolution, shape.n_levels)
        self.grid = HashGrid(
            3, HashGridConfig(shape.n_levels, shape.n_features, shape.log2_table, shape.base_resolution, growth)
        )
        self.proposal = ProposalGrid(shape.proposal_resolution)
        # A code weighs the features of the grid, so that some of them can become one state's own, and is constant along
        # a ray: reading it beside the features is adding a linear function of it to the hidden layer. Small codes make
        # states start nearly alike, and what one of them does not show is taken from the others.
        self.codes = nn.Parameter(settings.code_spread * torch.randn(states, shape.state_code))
        self.feature_state = nn.Linear(shape.state_code, self.grid.out_dim, bias=False)
        self.place = nn.Linear(self.grid.out_dim, shape.width)
        self.place_state = nn.Linear(shape.state_code, shape.width, bias=False)
        self.geometry = nn.Linear(shape.width, 1 + shape.geometry)
        self.color = nn.Linear(shape.geometry, shape.width)
        self.color_state = nn.Linear(shape.state_code, shape.width, bias=False)
        n_harmonics = 9  # of degree 0 to 2
        self.color_view = nn.Linear(n_harmonics, shape.width, bias=False)
        self.rgb = nn.Linear(shape.width, 3)
        self.sky_color = nn.Linear(n_harmonics, 3)
        self.sky_state = nn.Linear(shape.state_code, 3, bias=False)
        # Colors start the same from all sides: views far from the path are then guessed from geometry.
        for layer in (self.color_view, self.sky_color):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.sky_color.bias)
        self.register_buffer("center", torch.tensor(frame.center))
        self.register_buffer("radius", torch.tensor(frame.radius))
        self.paint = None

    def parameter_groups(self) -> list[dict]:
        """Returns parameters and learning rates for an optimizer."""
        named = dict(self.named_parameters())
        rates = {
            "grid.params": self.settings.grid_rate,
            "proposal.raw": self.settings.proposal_rate,
            "color_view.weight": self.settings.view_color_rate,
        }
        networks = [tensor for name, tensor in named.items() if name not in rates]
        groups: list[dict] = [{"params": networks, "lr": self.settings.network_rate}]
        for name, rate in rates.items():
            groups.append({"params": [named[name]], "lr": rate})
        return groups

    def march_rays(
        self,
        rays: Rays,
        state: Int[Tensor, " rays"],
        generator: torch.Generator | None = None,
        exponent: float = 1.0,
        min_weight: float = 0.0,
    ) -> tuple[RaySamples, RayIntervals]:
        """Samples the field along rays; also returns the intervals into which these were divided.

        Args:
            rays: in the world.
            state: of the scene, for each ray.
            generator: moves samples along their rays; None for the same samples every time.
            exponent: of the proposed weights, see `annealing_exponent`.
            min_weight: samples with a rendering weight up to this stay black, which saves most of the work.
        """
        config = self.config
        local = Rays((rays.origin - self.center) / self.radius, rays.direction, rays.time)
        counts = (config.proposed, config.samples)
        intervals = self.proposal.divide_rays(local, (config.near, config.far), counts, exponent, generator)
        distance = spacing_to_distance(intervals.edges)
        middle, length = (distance[:, 1:] + distance[:, :-1]) / 2, distance.diff(dim=1)
        points = contract_space(local.points_at(middle))
        density, geometry = self._query_geometry(points, state)
        beside = self.color_view(spherical_harmonics(rays.direction)) + self.color_state(self.codes)[state]
        if min_weight > 0:
            visible = rendering_weights(density * length) > min_weight
            color = torch.zeros_like(geometry[..., :3])
            color[visible] = self._query_color(geometry[visible], beside[visible.nonzero()[:, 0]], points[visible])
        else:
            visible = torch.ones_like(density, dtype=torch.bool)
            color = self._query_color(geometry, beside[:, None], points)
        radius = self.radius
        return RaySamples(
            middle * radius, length * radius, density / radius, color, torch.ones_like(visible)
        ), intervals

    def render_sky(self, rays: Rays, state: Int[Tensor, " rays"]) -> Float[Tensor, "rays 3"]:
        """Computes the colors behind everything."""
        raw = self.sky_color(spherical_harmonics(rays.direction)) + self.sky_state(self.codes)[state]
        return torch.sigmoid(raw if self.paint is None else raw + self.paint(rays.direction / 2 + 0.5))

    def density_at(self, points: Float[Tensor, "points 3"], state: Int[Tensor, " points"]) -> Float[Tensor, " points"]:
        """Computes densities at points of the world, for a unit of its length."""
        local = contract_space((points - self.center) / self.radius)
        return self._query_geometry(local[:, None], state)[0][:, 0] / self.radius

    def _query_geometry(self, points: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Computes density [N, S] and features [N, S, G] at contracted points [N, S, 3]."""
        features = self.grid(points.reshape(-1, 3) / 4 + 0.5).view(*points.shape[:2], -1)
        features = features * (1 + self.feature_state(self.codes))[state][:, None]
        hidden = self.place(features) + self.place_state(self.codes)[state][:, None]
        raw, geometry = self.geometry(torch.relu(hidden)).split([1, self.config.geometry], dim=-1)
        return activate_density(raw[..., 0] - 1), geometry

    def _query_color(self, geometry: Tensor, beside: Tensor, points: Tensor) -> Tensor:
        """Computes colors [..., 3] of features [..., G] at contracted points [..., 3]."""
        raw = self.rgb(torch.relu(self.color(geometry) + beside))
        if self.paint is None:
            return torch.sigmoid(raw)
        return torch.sigmoid(raw + self.paint(points.reshape(-1, 3) / 4 + 0.5).view_as(raw))


@torch.no_grad()
def find_blocked_views(field: BackgroundField, cameras: Sequence[Camera], states: Sequence[int]) -> list[int]:
    """Finds views whose camera is inside something or right before it, so that they see nothing else.

    Of such a view at least `blocked_share` of the light ends within one more near distance behind the near plane.

    Args:
        field: the background.
        cameras: of the views.
        states: of the scene, one a view.
    """
    device = field.center.device
    blocked, limit = [], 2 * field.config.near * field.bounds.radius
    for index, (camera, state) in enumerate(zip(cameras, states, strict=True)):
        pixel = torch.linspace(0, camera.width * camera.height - 1, field.settings.blocked_rays, device=device).long()
        view_rays = ViewRays([camera], [0], device)(torch.zeros_like(pixel), pixel)
        samples, _ = field.march_rays(view_rays, torch.full_like(pixel, state), min_weight=1.0)
        thickness = (optical_thickness(samples) * (samples.depth < limit)).sum(dim=1)
        if -torch.expm1(-thickness).mean() >= field.settings.blocked_share:
            blocked.append(index)
    return blocked
