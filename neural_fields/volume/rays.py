"""Rays through a scene, samples of fields along them, and volume rendering. Pure functions on torch tensors.

Distances are along unit directions and in world units. "mip-NeRF 360" is Barron et al., "Mip-NeRF 360:
Unbounded Anti-Aliased Neural Radiance Fields" (2022); the sums along a ray are those of Max, "Optical Models for Direct
Volume Rendering" (1995), sections 2 and 3. N rays, S samples of a ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from neural_fields.data.capture.cameras import Camera

_EPSILON = 1e-10


@dataclass(frozen=True)
class Rays:
    """Holds rays, each at a moment.

    Attributes:
        origin: in world units.
        direction: unit vectors.
        time: the moment, an index into the frames of a motion.
    """

    origin: Float[Tensor, "rays 3"]
    direction: Float[Tensor, "rays 3"]
    time: Int[Tensor, " rays"]

    def __len__(self) -> int:
        return len(self.origin)

    def __getitem__(self, pick: Tensor | slice) -> Rays:
        """Returns some of the rays, by index, slice or mask."""
        return Rays(self.origin[pick], self.direction[pick], self.time[pick])

    def points_at(self, distance: Float[Tensor, "rays samples"]) -> Float[Tensor, "rays samples 3"]:
        """Computes the points at these distances."""
        return torch.addcmul(self.origin[:, None], self.direction[:, None], distance[..., None])


@dataclass(frozen=True)
class RaySamples:
    """Samples of one field along rays, from near to far.

    Attributes:
        depth: distance of each sample, in the middle of its interval of the ray.
        interval: length of that interval.
        density: optical thickness of a unit of length, at least 0.
        color: RGB in [0, 1].
        inside: samples that count; the others only fill the rectangle.
    """

    depth: Float[Tensor, "rays samples"]
    interval: Float[Tensor, "rays samples"]
    density: Float[Tensor, "rays samples"]
    color: Float[Tensor, "rays samples 3"]
    inside: Bool[Tensor, "rays samples"]


@dataclass(frozen=True)
class RenderedRays:
    """Holds rendered rays.

    Attributes:
        color: RGB premultiplied by the opacity.
        opacity: in [0, 1]; the rest of the light comes from behind.
        depth: mean distance at which the light left, 0 where nothing is hit.
        weights: share of each sample in the ray's light; they add up to the opacity.
    """

    color: Float[Tensor, "rays 3"]
    opacity: Float[Tensor, " rays"]
    depth: Float[Tensor, " rays"]
    weights: Float[Tensor, "rays samples"]

    def composite_over(self, behind: Float[Tensor, "*rays 3"]) -> Float[Tensor, "rays 3"]:
        """Composites the colors over other colors."""
        return self.color + (1 - self.opacity)[:, None] * behind


def camera_rays(
    camera: Camera, pixels: Float[NDArray, "rays 2"] | None = None, time: int = 0, device: torch.device | None = None
) -> Rays:
    """Makes the rays of pixel positions at a moment.

    Args:
        camera: in the world.
        pixels: positions, x to the right and y down; by default all pixel centers, row by row.
        time: the moment.
        device: of the rays.
    """
    if pixels is None:
        pixels = _pixel_centers(camera.width, camera.height)
    direction = torch.tensor(camera.compute_ray_directions(pixels), dtype=torch.float32, device=device)
    origin = torch.tensor(camera.position, dtype=torch.float32, device=device).expand_as(direction)
    return Rays(origin, direction, torch.full((len(direction),), time, device=device))


def _pixel_centers(width: int, height: int) -> NDArray[np.float64]:
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    return np.stack([columns.ravel(), rows.ravel()], axis=1)


class ViewRays:
    """Computes the rays of the pixels of many views of one size on demand.

    Views with one lens share one table of directions, so that long captures take little memory.

    Args:
        cameras: one a view.
        times: the moment of each view.
        device: of the rays.
    """

    def __init__(self, cameras: Sequence[Camera], times: Sequence[int], device: torch.device | None = None) -> None:
        lenses: dict[tuple, int] = {}
        tables, chosen = [], []
        for camera in cameras:
            key = (camera.width, camera.height, camera.focal, camera.center, camera.distortion, camera.lens)
            if key not in lenses:
                lenses[key] = len(lenses)
                centers = _pixel_centers(camera.width, camera.height)
                tables.append(camera.with_pose(np.eye(4)).compute_ray_directions(centers))
            chosen.append(lenses[key])
        poses = np.stack([camera.pose for camera in cameras])
        self.width, self.height = cameras[0].width, cameras[0].height
        self._local = torch.tensor(np.stack(tables), dtype=torch.float32, device=device)
        self._lens = torch.tensor(chosen, device=device)
        self._pose = torch.tensor(poses, dtype=torch.float32, device=device)
        self._time = torch.tensor(list(times), device=device)

    def __call__(self, view: Int[Tensor, " rays"], pixel: Int[Tensor, " rays"]) -> Rays:
        """Returns the rays of pixels (row times width, plus column) of views."""
        pose, local = self._pose[view], self._local[self._lens[view], pixel]
        direction = (pose[:, :3, :3] * local[:, None]).sum(dim=-1)
        return Rays(pose[:, :3, 3], direction, self._time[view])


def optical_thickness(marched: RaySamples) -> Float[Tensor, "rays samples"]:
    """Multiplies density by length for every sample that counts."""
    return marched.density * marched.interval * marched.inside


def rendering_weights(thickness: Float[Tensor, "rays samples"]) -> Float[Tensor, "rays samples"]:
    """Computes rendering weights: the light that reaches a sample, times the share that it absorbs."""
    behind = thickness.cumsum(dim=1) - thickness
    return torch.exp(-behind) * -torch.expm1(-thickness)


def render_samples(marched: RaySamples) -> RenderedRays:
    """Renders samples along rays: alpha compositing, front to back."""
    thickness = optical_thickness(marched)
    weights = rendering_weights(thickness)
    opacity = -torch.expm1(-thickness.sum(dim=1))
    color = torch.einsum("ns,nsc->nc", weights, marched.color)
    depth = (weights * marched.depth).sum(dim=1) / opacity.clamp_min(_EPSILON)
    return RenderedRays(color, opacity, depth, weights)


def merge_samples(first: RaySamples, second: RaySamples) -> tuple[RaySamples, Bool[Tensor, "rays samples"]]:
    """Merges two fields along the same rays, sorted by distance.

    Every sample keeps its own length, so the light that both absorb together is exact. Samples that do not count go to
    the end.

    Returns:
        All samples, and which of them are the first field's.
    """
    depth = torch.cat([first.depth, second.depth], dim=1)
    inside = torch.cat([first.inside, second.inside], dim=1)
    order = torch.where(inside, depth, torch.inf).argsort(dim=1, stable=True)
    merged = RaySamples(
        depth.gather(1, order),
        torch.cat([first.interval, second.interval], dim=1).gather(1, order),
        torch.cat([first.density, second.density], dim=1).gather(1, order),
        torch.cat([first.color, second.color], dim=1).gather(1, order[..., None].expand(-1, -1, 3)),
        inside.gather(1, order),
    )
    return merged, order < first.depth.shape[1]


def contract_space(points: Float[Tensor, "*points 3"]) -> Float[Tensor, "*points 3"]:
    """Contracts space into a ball of radius 2: the unit ball stays. mip-NeRF 360, equation 10."""
    length = points.norm(dim=-1, keepdim=True).clamp_min(1)
    return points * ((2 - 1 / length) / length)


def sample_pdf(
    edges: Float[Tensor, "rays edges"],
    weights: Float[Tensor, "rays intervals"],
    count: int,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "rays {count}"]:
    """Draws positions from near to far, as dense as a histogram is high (inverse of its cumulative sum).

    Args:
        edges: of the histogram's intervals, rising; one more than weights.
        weights: of the intervals, at least 0; a ray of zeros counts as even.
        count: of positions on a ray.
        generator: moves all positions of a ray by one random part of a step; without one they are in the steps'
            middles.
    """
    rays, intervals = weights.shape
    cumulative = (weights + _EPSILON).cumsum(dim=1)
    cumulative = torch.cat([torch.zeros_like(cumulative[:, :1]), cumulative / cumulative[:, -1:]], dim=1)
    steps = torch.arange(count, dtype=edges.dtype, device=edges.device)
    if generator is None:
        targets = ((steps + 0.5) / count).expand(rays, count).contiguous()
    else:
        jitter = torch.rand(rays, 1, dtype=edges.dtype, generator=generator, device=generator.device).to(edges.device)
        targets = (steps + jitter) / count
    upper = torch.searchsorted(cumulative, targets, right=True).clamp(1, intervals)
    below, above = cumulative.gather(1, upper - 1), cumulative.gather(1, upper)
    start, end = edges.gather(1, upper - 1), edges.gather(1, upper)
    part = ((targets - below) / (above - below).clamp_min(_EPSILON)).clamp(0, 1)
    return torch.lerp(start, end, part)


def edges_around_samples(
    positions: Float[Tensor, "rays samples"], low: float, high: float
) -> Float[Tensor, "rays samples_and_one"]:
    """Computes edges of intervals with one sample in each: midway between neighbors, and as far beyond the outer ones.

    Args:
        positions: of the samples, rising.
        low: no edge is below this.
        high: no edge is above this.
    """
    middle = (positions[:, 1:] + positions[:, :-1]) / 2
    first, last = 2 * positions[:, :1] - middle[:, :1], 2 * positions[:, -1:] - middle[:, -1:]
    return torch.cat([first, middle, last], dim=1).clamp(low, high)
