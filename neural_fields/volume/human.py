"""The person with carried objects: a field in the rest pose that bones deform to every moment.

HOSNeRF (Liu et al. 2023), section 3.2, with a hash grid instead of the paper's network of eight layers. Backward
skinning takes a point of the world to the rest pose, a network that reads the pose adds a small offset, and the field
is evaluated there. A code for each state of the carried object is an input of the field.

Rays are sampled only within reach of a bone (`skinning.ReachIntervals`), and the field is evaluated only at samples
that belong to the body. A new pose is a new set of transforms; nothing else changes. N rays, S samples of a ray, M
moments, B bones, K samples at which the field was evaluated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from neural_fields.core.errors import bad_input
from neural_fields.data.capture.capture import Capture
from neural_fields.data.capture.skeleton import Skeleton
from neural_fields.nn.fourier import Fourier
from neural_fields.nn.hash_grid import HashGrid, HashGridConfig, compute_growth
from neural_fields.nn.mlp import MLP
from neural_fields.volume.color_edit import ColorPaint
from neural_fields.volume.pose import Kinematics, PoseRefiner
from neural_fields.volume.rays import Rays, RaySamples
from neural_fields.volume.skinning import SkinningVolume, compute_bone_bumps, invert_rigid


@dataclass(frozen=True)
class PersonConfig:
    """Sets the sizes of the person's field."""

    n_levels: int = 8  # grids, from coarse to fine
    log2_table: int = 15  # entries of a grid at most, as a power of two
    base_resolution: int = 12  # vertices of the coarsest grid along each axis of the box in rest pose
    finest: int = 160  # vertices of the finest grid along each axis
    width: int = 64  # neurons of a hidden layer, here and in the networks of pose and offset
    state_size: int = 64  # length of the code of a state of the carried object; 64 in the paper
    samples: int = 24  # samples of a ray, in the part of it that is within reach of the bones
    voxels: int = 48  # of the skinning volume along the longest side of the box; 32 in the paper
    octaves: int = 6  # frequencies of the positional encoding of the offset network; the paper's number


@dataclass(frozen=True)
class PersonSettings:
    """Settings of the person's field."""

    grid_features: int = 4  # of a vertex of the field's grids: two states of an object share them
    feature_bound: float = 0.1  # at the start: from the grid's own 1e-4 the first hundred steps teach little
    min_likelihood: float = 5e-3  # samples that belong to the body less are empty: the paper's number
    density_scale: float = 60.0  # of a raw value of 1, on a body whose box is 1 long
    density_bias: float = -1.0  # added to the raw value, which so starts at softplus(-1), a third
    offset_bound: float = 1e-5  # weights of the offset's last layer at the start: the paper's


DEFAULTS = PersonSettings()


class CanonicalField(nn.Module):
    """Computes density and color in the box of the rest pose, for each state of the carried object.

    Density is in units of 1 / length of the world: it starts at a third of `density_scale` over the box's longest side.
    The paper concatenates the state's code with the features of a position. Here it also scales each neuron of the
    first layer: a small field holds all states at the same positions, and a sum does not separate them well.

    Args:
        low, high: corners of the box of the rest pose, in world units.
        states: of the carried object.
        config: sizes.
        settings: of the person's field.

    Attributes:
        paint: of an edit; see `color_edit.py`.
    """

    low: Tensor
    high: Tensor
    paint: ColorPaint | None

    def __init__(
        self, low: Tensor, high: Tensor, states: int, config: PersonConfig, settings: PersonSettings = DEFAULTS
    ) -> None:
        super().__init__()
        self.settings = settings
        self.register_buffer("low", low.clone())
        self.register_buffer("high", high.clone())
        growth = compute_growth(config.finest, config.base_resolution, config.n_levels)
        grid = HashGridConfig(
            config.n_levels, settings.grid_features, config.log2_table, config.base_resolution, growth
        )
        self.grid = HashGrid(3, grid)
        nn.init.uniform_(self.grid.params, -settings.feature_bound, settings.feature_bound)
        self.states = nn.Parameter(torch.randn(states, config.state_size))
        self.first = nn.Linear(self.grid.out_dim, config.width)
        self.state_in = nn.Linear(config.state_size, config.width, bias=False)
        self.state_gain = nn.Linear(config.state_size, config.width, bias=False)
        self.rest = MLP(config.width, 4, config.width, layers=2)
        self.paint = None

    def forward(
        self, points: Float[Tensor, "points 3"], state: Int[Tensor, " points"]
    ) -> tuple[Float[Tensor, " points"], Float[Tensor, "points 3"]]:
        """Computes density and color at points of the rest pose."""
        side = self.high - self.low
        place = ((points - self.low) / side).clamp(0, 1)
        gain, shift = 1 + self.state_gain(self.states), self.state_in(self.states)
        raw = self.rest(torch.relu(self.first(self.grid(place)) * gain[state] + shift[state]))
        color = raw[:, 1:] if self.paint is None else raw[:, 1:] + self.paint(place)
        density = nn.functional.softplus(raw[:, 0] + self.settings.density_bias)
        return density * (self.settings.density_scale / side.max()), torch.sigmoid(color)


def hann_window(octaves: int, share: float) -> Float[Tensor, " octaves"]:
    """Computes the weight of each frequency of an encoding that is released (Park et al. 2021, "Nerfies", equation 8).

    Args:
        octaves: number of frequencies.
        share: progress of the release, 0 to 1.

    Returns:
        The weights, in [0, 1].

    Example:
        >>> hann_window(4, 0.5).tolist()
        [1.0, 1.0, 0.0, 0.0]
    """
    opened = (share * octaves - torch.arange(octaves, dtype=torch.float32)).clamp(0, 1)
    return (1 - torch.cos(math.pi * opened)) / 2


class PoseOffset(nn.Module):
    """Computes pose-dependent offsets of points of the rest pose after skinning: cloth, muscles, hair.

    Args:
        center: of the box of the rest pose.
        span: longest side of the box in world units: offsets are parts of it.
        code_size: numbers of a pose's code, see `pose.Kinematics`.
        config: sizes.
        settings: of the person's field.
    """

    center: Tensor

    def __init__(
        self,
        center: Tensor,
        span: float,
        code_size: int,
        config: PersonConfig,
        settings: PersonSettings = DEFAULTS,
    ) -> None:
        super().__init__()
        self.register_buffer("center", center.clone())
        self.span = span
        self.waves = Fourier(3, config.octaves)
        self.first = nn.Linear(self.waves.out_dim, config.width)
        self.code_in = nn.Linear(max(code_size, 1), config.width, bias=False)
        self.rest = MLP(config.width, 3, config.width, layers=3, output_bound=settings.offset_bound)

    def forward(
        self,
        points: Float[Tensor, "points 3"],
        moment: Int[Tensor, " points"],
        code: Float[Tensor, "moments code"],
        offset_share: float,
    ) -> Float[Tensor, "points 3"]:
        """Computes offsets in world units.

        Args:
            points: where skinning puts them in the rest pose.
            moment: of each point, an index into `code`.
            code: of the poses.
            offset_share: from 0 to 1 lets one frequency in after the other.
        """
        window = hann_window(self.waves.octaves, offset_share).to(points).repeat_interleave(6)
        waves = self.waves((points - self.center) / self.span) * window
        hidden = torch.relu(self.first(waves) + self.code_in(code)[moment])
        return self.span * self.rest(hidden)


@dataclass(frozen=True)
class PersonSamples:
    """Holds the samples at which the field was evaluated, for the losses.

    Attributes:
        ray: of each sample, an index into the rays.
        slot: of each sample, an index into the concatenated samples of all rays.
        moment: of each sample.
        world: its position.
        rest: where skinning puts it in the rest pose, before the offset.
        offset: from there to where the field was read; None while offsets are not computed.
        likelihood: that it belongs to the body, 0 to 1.
        weights: the skinning volume that was used.
    """

    ray: Int[Tensor, " samples"]
    slot: Int[Tensor, " samples"]
    moment: Int[Tensor, " samples"]
    world: Float[Tensor, "samples 3"]
    rest: Float[Tensor, "samples 3"]
    offset: Float[Tensor, "samples 3"] | None
    likelihood: Float[Tensor, " samples"]
    weights: Float[Tensor, "channels z y x"]


class PersonModel(nn.Module):
    """Models a rigged person with carried objects.

    Args:
        skeleton: the skeleton in the rest pose.
        states: number of states of the carried object.
        config: sizes.
        radii: sizes of joints by name, in world units; see `skinning.compute_bone_bumps`.
        poses: bones at the moments of the training, which are corrected one by one; see `pose.PoseRefiner`.
        settings: of the field.

    Example:
        person = PersonModel(motion.skeleton, states=2)
        bones, change = person.refine_poses(transforms)
        ray_samples, person_samples = person.march_rays(rays, bones, state)
    """

    def __init__(
        self,
        skeleton: Skeleton,
        states: int = 1,
        config: PersonConfig | None = None,
        radii: Mapping[str, float] | None = None,
        poses: Float[np.ndarray, "moments bones 4 4"] | None = None,
        settings: PersonSettings = DEFAULTS,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.config = config = config or PersonConfig()
        self.skinning = SkinningVolume(skeleton, config.voxels, radii)
        low, high = self.skinning.low, self.skinning.high
        span = float((high - low).max())
        self.kinematics = Kinematics(skeleton)
        known = None if poses is None else torch.tensor(poses, dtype=torch.float32)
        self.refiner = PoseRefiner(self.kinematics, span, config.width, known)
        self.offset = PoseOffset((low + high) / 2, span, self.kinematics.code_size, config, settings)
        self.field = CanonicalField(low, high, states, config, settings)

    def refine_poses(
        self, transforms: Float[Tensor, "moments bones 4 4"]
    ) -> tuple[Float[Tensor, "moments bones 4 4"], Float[Tensor, ""]]:
        """Corrects the poses of bones; also returns the mean square of the corrections."""
        return self.refiner(transforms)

    def march_rays(
        self,
        rays: Rays,
        transforms: Float[Tensor, "moments bones 4 4"],
        state: Int[Tensor, " rays"],
        generator: torch.Generator | None = None,
        offset_share: float = 1.0,
    ) -> tuple[RaySamples, PersonSamples]:
        """Samples the person along rays at their moments.

        Args:
            rays: in the world.
            transforms: bones, rest to world; `rays.time` are indices into them.
            state: of the carried object on each ray.
            generator: moves every sample within its part of the ray; without one they are in the middles.
            offset_share: factor on the pose-dependent offset, 0 to 1; at 0 it is not computed.

        Returns:
            The samples of all rays, and those at which the field was read.
        """
        count = self.config.samples
        to_rest = invert_rigid(transforms)
        reached = self.skinning.intersect_reach(rays, to_rest)
        hit = (reached.total_length > 0).nonzero()[:, 0]
        # Distances of the samples from near to far, and the length that each stands for.
        within = reached[hit]
        steps = torch.arange(count, dtype=torch.float32, device=hit.device).expand(len(hit), count)
        jitter = torch.full_like(steps, 0.5)
        if generator is not None:
            jitter = torch.rand(len(hit), count, device=generator.device, generator=generator).to(steps)
        depth, length = within.distances_at((steps + jitter) / count), within.total_length / count
        pairs = self.skinning.pair_ray_samples(rays[hit], depth, within, to_rest)
        weights = self.skinning.compute_weights()
        skinned = self.skinning.skin_backward(weights, pairs)
        kept = (skinned.likelihood > self.settings.min_likelihood).nonzero()[:, 0]
        ray = hit[kept // count]
        moment, rest, likelihood = rays.time[ray], skinned.points[kept], skinned.likelihood[kept]
        offset = None
        if offset_share > 0 and self.kinematics.code_size:
            offset = self.offset(rest, moment, self.kinematics.encode_pose(transforms), offset_share)
        density, color = self.field(rest if offset is None else rest + offset, state[ray])
        slot = ray * count + kept % count
        distance = depth.view(-1)[kept]
        world = torch.addcmul(rays.origin[ray], rays.direction[ray], distance[:, None])
        # The samples are put among those of all rays; the others do not count.
        shape = (len(rays), count)
        density = density * likelihood
        samples = RaySamples(
            depth=depth.new_zeros(shape).index_copy(0, hit, depth),
            interval=depth.new_zeros(shape).index_copy(0, hit, length[:, None].expand_as(depth)),
            density=density.new_zeros(math.prod(shape)).index_copy(0, slot, density).view(shape),
            color=color.new_zeros(math.prod(shape), 3).index_copy(0, slot, color).view(*shape, 3),
            inside=torch.zeros(math.prod(shape), dtype=torch.bool, device=hit.device)
            .index_fill(0, slot, True)
            .view(shape),
        )
        return samples, PersonSamples(ray, slot, moment, world, rest, offset, likelihood, weights)


def check_cameras_outside(capture: Capture) -> None:
    """Checks that no camera is inside the person at its moment.

    Raises:
        UserError: one does; it names the view.
    """
    if capture.motion is None:
        return
    bumps = compute_bone_bumps(capture.motion.skeleton)
    for view, (camera, time) in enumerate(zip(capture.cameras, capture.times, strict=True)):
        bones = capture.motion.transforms[time][list(bumps.bone)]
        places = np.einsum("gji,gj->gi", bones[:, :3, :3], camera.position - bones[:, :3, 3])
        away = np.linalg.norm(np.einsum("gij,gj->gi", bumps.shape, places - bumps.center), axis=1)
        if away.min() < 1:
            name = capture.motion.skeleton.names[bumps.bone[int(away.argmin())]]
            raise bad_input(
                f"the camera of view {view} is inside the person, at the bone {name}",
                where=f"view {view}, moment {time}",
                why="cameras look at the person from outside; bones and cameras must be in one unit and one world",
                fix="check that the unit and the axes of bones and cameras are the same",
            )
