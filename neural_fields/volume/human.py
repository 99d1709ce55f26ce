"""The person and what they carry: one field at rest, brought to every moment by bones.

HOSNeRF (Liu et al. 2023), section 3.2, with a hash grid in place of the paper's network of eight layers. A point of the
world goes back to the rest pose by backward skinning, is moved a little by a network that knows the pose, and is looked
up there. What the carried object is like at a moment comes in as a code of 64 numbers for each of its states.

Samples lie only where a bone reaches (`body.Reached`), and only those that belong to the body are looked up.
Another pose is another set of transforms; nothing else changes. N rays, S samples of a ray, M moments, B bones, K
samples that were looked up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from neural_fields.config_volume import HumanConfig
from neural_fields.data.capture import Capture
from neural_fields.data.skeleton import Skeleton
from neural_fields.encodings.fourier import Fourier
from neural_fields.encodings.hash_grid import HashGrid, HashGridConfig, growth_to
from neural_fields.encodings.mlp import MLP
from neural_fields.errors import bad_input
from neural_fields.volume.body import Reached, Skinning, bone_bumps, inverse_rigid
from neural_fields.volume.paint import Paint
from neural_fields.volume.pose import FIRST_BOUND, Kinematics, PoseRefiner
from neural_fields.volume.rays import Marched, Rays

FEATURES = 4  # of a vertex of the field's grids: two states of an object share them
FIRST_FEATURES = 0.1  # bound at the start: from the grid's own 1e-4 the first hundred steps teach little
LEAST_LIKELIHOOD = 5e-3  # samples that belong to the body less are empty: the paper's number
DENSITY = 60.0  # of a raw value of 1, on a body whose box is 1 long; the raw value starts at a third of that
START = -1.0  # added to the raw value: softplus(-1) is a third


class CanonicalField(nn.Module):
    """Density and colour in the box of the rest pose, for each state of the carried object.

    Density is in units of 1 / length of the world: it starts at about a third of `DENSITY` over the box's longest side.
    The paper puts the state's code beside the features of a place. Here it also says how much each neuron of the first
    layer counts: in one place of a small field lie the pictures of all states, and a sum alone hardly tells them apart.

    Attributes:
        paint: of an edit; see `volume.paint`.
    """

    low: Tensor
    high: Tensor
    paint: Paint | None

    def __init__(self, low: Tensor, high: Tensor, states: int, config: HumanConfig) -> None:
        super().__init__()
        self.register_buffer("low", low.clone())
        self.register_buffer("high", high.clone())
        growth = growth_to(config.finest, config.base_resolution, config.n_levels)
        grid = HashGridConfig(config.n_levels, FEATURES, config.log2_table, config.base_resolution, growth)
        self.grid = HashGrid(3, grid)
        nn.init.uniform_(self.grid.params, -FIRST_FEATURES, FIRST_FEATURES)
        self.states = nn.Parameter(torch.randn(states, config.state_size))
        self.first = nn.Linear(self.grid.out_dim, config.width)
        self.state_in = nn.Linear(config.state_size, config.width, bias=False)
        self.state_gain = nn.Linear(config.state_size, config.width, bias=False)
        self.rest = MLP(config.width, 4, config.width, layers=2)
        self.paint = None

    def forward(
        self, points: Float[Tensor, "points 3"], state: Int[Tensor, " points"]
    ) -> tuple[Float[Tensor, " points"], Float[Tensor, "points 3"]]:
        """Density and colour of points of the rest pose."""
        side = self.high - self.low
        place = ((points - self.low) / side).clamp(0, 1)
        gain, shift = 1 + self.state_gain(self.states), self.state_in(self.states)
        raw = self.rest(torch.relu(self.first(self.grid(place)) * gain[state] + shift[state]))
        color = raw[:, 1:] if self.paint is None else raw[:, 1:] + self.paint(place)
        return nn.functional.softplus(raw[:, 0] + START) * (DENSITY / side.max()), torch.sigmoid(color)


def hann_window(octaves: int, opened: float) -> Float[Tensor, " octaves"]:
    """Weight of each frequency while `opened` goes from 0 to 1 (Park et al. 2021, "Nerfies", equation 8)."""
    share = (opened * octaves - torch.arange(octaves, dtype=torch.float32)).clamp(0, 1)
    return (1 - torch.cos(math.pi * share)) / 2


class Offset(nn.Module):
    """How far a point of the rest pose is from where skinning puts it, from the pose: cloth, muscles, hair.

    Args:
        span: longest side of the box in world units: offsets are parts of it.
    """

    centre: Tensor

    def __init__(self, centre: Tensor, span: float, code_size: int, config: HumanConfig) -> None:
        super().__init__()
        self.register_buffer("centre", centre.clone())
        self.span = span
        self.waves = Fourier(3, config.octaves)
        self.first = nn.Linear(self.waves.out_dim, config.width)
        self.code_in = nn.Linear(max(code_size, 1), config.width, bias=False)
        self.rest = MLP(config.width, 3, config.width, layers=3, output_bound=FIRST_BOUND)

    def forward(
        self,
        points: Float[Tensor, "points 3"],
        moment: Int[Tensor, " points"],
        code: Float[Tensor, "moments code"],
        opened: float,
    ) -> Float[Tensor, "points 3"]:
        """Offsets in world units; `opened` from 0 to 1 lets one frequency in after the other."""
        window = hann_window(self.waves.octaves, opened).to(points).repeat_interleave(6)
        waves = self.waves((points - self.centre) / self.span) * window
        hidden = torch.relu(self.first(waves) + self.code_in(code)[moment])
        return self.span * self.rest(hidden)


@dataclass(frozen=True)
class Carried:
    """The samples that were looked up, for the terms of a fit.

    Attributes:
        ray: of each sample, an index into the rays.
        slot: of each sample, an index into the rays' samples one behind the other.
        moment: of each sample.
        world: where it is.
        rest: where skinning puts it in the rest pose, before the offset.
        offset: from there to where the field was asked; None while offsets are closed.
        likelihood: how much it belongs to the body.
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


class Human(nn.Module):
    """A person on bones.

    Args:
        states: of the carried object.
        radii: sizes of joints by name, in world units; see `body.bone_bumps`.
        poses: bones of the moments of the fit, which are corrected one by one; see `pose.PoseRefiner`.

    Example:
        >>> human = Human(motion.skeleton, states=2)
        >>> bones, _ = human.refined(transforms)
        >>> marched, _ = human.march(rays, bones, state)
    """

    def __init__(
        self,
        skeleton: Skeleton,
        states: int = 1,
        config: HumanConfig | None = None,
        radii: Mapping[str, float] | None = None,
        poses: Float[np.ndarray, "moments bones 4 4"] | None = None,
    ) -> None:
        super().__init__()
        self.config = config = config or HumanConfig()
        self.skinning = Skinning(skeleton, config.voxels, radii)
        low, high = self.skinning.low, self.skinning.high
        span = float((high - low).max())
        self.kinematics = Kinematics(skeleton)
        known = None if poses is None else torch.tensor(poses, dtype=torch.float32)
        self.refiner = PoseRefiner(self.kinematics, span, config.width, known)
        self.offset = Offset((low + high) / 2, span, self.kinematics.code_size, config)
        self.field = CanonicalField(low, high, states, config)

    def refined(
        self, transforms: Float[Tensor, "moments bones 4 4"]
    ) -> tuple[Float[Tensor, "moments bones 4 4"], Float[Tensor, ""]]:
        """Bones with their poses corrected, and the mean square of the corrections."""
        return self.refiner(transforms)

    def march(
        self,
        rays: Rays,
        transforms: Float[Tensor, "moments bones 4 4"],
        state: Int[Tensor, " rays"],
        generator: torch.Generator | None = None,
        opened: float = 1.0,
    ) -> tuple[Marched, Carried]:
        """What rays meet of the person at their moments.

        Args:
            transforms: bones, rest to world; `rays.time` are indices into them.
            state: of the carried object on each ray.
            generator: moves every sample within its part of the ray; without one they are in the middles.
            opened: how much of the pose's offset counts, 0 to 1; at 0 it is not computed.
        """
        to_rest = inverse_rigid(transforms)
        reached = self.skinning.reached(rays, to_rest)
        hit = (reached.total > 0).nonzero()[:, 0]
        depth, length = self._places(reached[hit], generator)
        pairs = self.skinning.pairs_on_rays(rays[hit], depth, reached[hit], to_rest)
        weights = self.skinning.weights()
        skinned = self.skinning.backward_skinning(weights, pairs)
        kept = (skinned.likelihood > LEAST_LIKELIHOOD).nonzero()[:, 0]
        ray = hit[kept // self.config.samples]
        moment, rest, likelihood = rays.time[ray], skinned.points[kept], skinned.likelihood[kept]
        offset = None
        if opened > 0 and self.kinematics.code_size:
            offset = self.offset(rest, moment, self.kinematics.code(transforms), opened)
        density, color = self.field(rest if offset is None else rest + offset, state[ray])
        slot = ray * self.config.samples + kept % self.config.samples
        distance = depth.view(-1)[kept]
        world = torch.addcmul(rays.origin[ray], rays.direction[ray], distance[:, None])
        marched = _rectangle(len(rays), hit, depth, length, slot, density * likelihood, color)
        return marched, Carried(ray, slot, moment, world, rest, offset, likelihood, weights)

    def _places(
        self, reached: Reached, generator: torch.Generator | None
    ) -> tuple[Float[Tensor, "rays samples"], Float[Tensor, " rays"]]:
        """Distances of the samples from near to far, and the length that each stands for."""
        count, samples = len(reached.start), self.config.samples
        steps = torch.arange(samples, dtype=torch.float32, device=reached.start.device).expand(count, samples)
        moved = torch.full_like(steps, 0.5)
        if generator is not None:
            moved = torch.rand(count, samples, device=generator.device, generator=generator).to(steps)
        return reached.places((steps + moved) / samples), reached.total / samples


def _rectangle(
    rays: int, hit: Tensor, depth: Tensor, length: Tensor, slot: Tensor, density: Tensor, color: Tensor
) -> Marched:
    """Samples of the rays that meet the person, put among those of all rays; the others do not count."""
    samples = depth.shape[1]
    all_depth = depth.new_zeros(rays, samples).index_copy(0, hit, depth)
    interval = depth.new_zeros(rays, samples).index_copy(0, hit, length[:, None].expand_as(depth))
    all_density = density.new_zeros(rays * samples).index_copy(0, slot, density)
    all_color = color.new_zeros(rays * samples, 3).index_copy(0, slot, color)
    inside = torch.zeros(rays * samples, dtype=torch.bool, device=depth.device).index_fill(0, slot, True)
    shape = (rays, samples)
    return Marched(all_depth, interval, all_density.view(shape), all_color.view(*shape, 3), inside.view(shape))


def check_cameras_outside(capture: Capture, radii: Mapping[str, float] | None = None) -> None:
    """Makes sure that no camera stands inside the person at its own moment.

    Raises:
        UserError: one does; it names the view.
    """
    if capture.motion is None:
        return
    bumps = bone_bumps(capture.motion.skeleton, radii)
    for view, (camera, time) in enumerate(zip(capture.cameras, capture.times, strict=True)):
        bones = capture.motion.transforms[time][list(bumps.bone)]
        places = np.einsum("gji,gj->gi", bones[:, :3, :3], camera.position - bones[:, :3, 3])
        away = np.linalg.norm(np.einsum("gij,gj->gi", bumps.shape, places - bumps.centre), axis=1)
        if away.min() < 1:
            name = capture.motion.skeleton.names[bumps.bone[int(away.argmin())]]
            raise bad_input(
                f"the camera of view {view} is inside the person, at the bone {name}",
                where=f"view {view}, moment {time}",
                why="cameras look at the person from outside; bones and cameras must be in one unit and one world",
                fix="check that the unit and the axes of bones and cameras are the same",
            )
