"""Painted surfaces of synthetic clips, and their positions: a transform for each frame, and optionally a smooth warp.

    plane = transform_t(xy),  uv = warp(plane, t)

The transform is affine or a homography. Warps have both directions: one in closed form, the other by a fixed-point
iteration. Times are frame numbers; fractions are between frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from torch import Tensor

from neural_fields.core.box import Box

Time = float | int
Points = Float[Tensor, "*n 2"]


class SurfaceWarp:
    """Deforms a surface smoothly over time, in its plane; this base class changes nothing."""

    def to_uv(self, plane: Points, t: Time) -> Points:
        """Maps plane to uv."""
        return plane

    def to_plane(self, uv: Points, t: Time) -> Points:
        """Maps uv to plane."""
        return uv

    def faces_camera(self, uv: Points, t: Time) -> Bool[Tensor, "*n"]:
        """Returns whether points of the surface face the camera."""
        return torch.ones(uv.shape[:-1], dtype=torch.bool)

    def outline_distance(self, plane: Points, t: Time) -> Float[Tensor, "*n"] | None:
        """Computes the distance to the outline on the plane, negative inside; None if it is painted."""
        return None


@dataclass(frozen=True)
class WaveWarp(SurfaceWarp):
    """A flag in the wind: uv = plane + s(plane, t) - s(plane, 0), two crossing waves s of plane units that travel."""

    amplitude: float = 0.03  # in uv units
    wavelength: float = 1.0  # in uv units
    period: float = 20.0  # frames until the wave repeats

    def to_uv(self, plane: Points, t: Time) -> Points:
        """See `SurfaceWarp.to_uv`; in closed form."""
        return plane + self._compute_shift(plane, t) - self._compute_shift(plane, 0)

    def to_plane(self, uv: Points, t: Time) -> Points:
        """See `SurfaceWarp.to_plane`; by fixed-point iteration."""
        return _solve_fixed_point(uv, lambda plane: self._compute_shift(plane, t) - self._compute_shift(plane, 0))

    def _compute_shift(self, plane: Points, t: Time) -> Points:
        k, phase = 2 * np.pi / self.wavelength, 2 * np.pi * t / self.period
        x, y = plane.unbind(-1)
        along = torch.sin(k * (0.8 * y + 0.3 * x) + phase)
        across = torch.sin(k * (0.9 * x - 0.2 * y) - phase + 1.0)
        return self.amplitude * torch.stack([along, across], -1)


@dataclass(frozen=True)
class ReliefWarp(SurfaceWarp):
    """Deforms a surface like hills under a camera that moves sideways: nearer points move further.

    plane = uv + t * velocity * depth(uv), with a smooth depth from -1 to 1.
    """

    velocity: tuple[float, float]  # motion of the nearest points relative to those of depth 0, in uv units a frame
    hill_spacing: float = 1.3  # distance from one hill to the next, in uv units

    def to_uv(self, plane: Points, t: Time) -> Points:
        """See `SurfaceWarp.to_uv`; by fixed-point iteration."""
        return _solve_fixed_point(plane, lambda uv: self._compute_shift(uv, t))

    def to_plane(self, uv: Points, t: Time) -> Points:
        """See `SurfaceWarp.to_plane`; in closed form."""
        return uv + self._compute_shift(uv, t)

    def _compute_shift(self, uv: Points, t: Time) -> Points:
        k = 2 * np.pi / self.hill_spacing
        depth = torch.sin(k * uv[..., 0] + 0.7) * torch.cos(k * uv[..., 1])
        return t * uv.new_tensor(self.velocity) * depth[..., None]


@dataclass(frozen=True)
class CylinderWarp(SurfaceWarp):
    """Wraps a surface around an upright cylinder that rotates about its axis; uv is its unrolled wall.

    In frame 0, u differs from x towards the rims: a point at the angle a is visible at x = radius * sin(a) and has
    u = radius * a.
    """

    center: tuple[float, float]
    radius: float
    half_height: float
    radians_per_frame: float  # rotation per frame

    def to_uv(self, plane: Points, t: Time) -> Points:
        """See `SurfaceWarp.to_uv`; points beside the cylinder map to its rim."""
        angle = ((plane[..., 0] - self.center[0]) / self.radius).clamp(-1, 1).asin()
        return torch.stack([self.center[0] + self.radius * (angle - self.radians_per_frame * t), plane[..., 1]], -1)

    def to_plane(self, uv: Points, t: Time) -> Points:
        """See `SurfaceWarp.to_plane`; points of the back land on those of the front that hide them."""
        return torch.stack([self.center[0] + self.radius * self._compute_angle(uv, t).sin(), uv[..., 1]], -1)

    def faces_camera(self, uv: Points, t: Time) -> Bool[Tensor, "*n"]:
        """Returns whether points of the wall are on the front half at a time."""
        return self._compute_angle(uv, t).abs() < np.pi / 2

    def outline_distance(self, plane: Points, t: Time) -> Float[Tensor, "*n"]:
        """Computes the larger of the distances to the rims and to the ends, in plane units, negative inside."""
        x, y = (plane - plane.new_tensor(self.center)).abs().unbind(-1)
        return torch.maximum(x - self.radius, y - self.half_height)

    def visible_box(self, frames: int) -> Box:
        """Computes the part of the wall that is visible within so many frames, with a margin."""
        turned, rim = self.radians_per_frame * frames, np.pi / 2 + 0.2
        (x, y), tall = self.center, self.half_height + 0.05
        left, right = x - self.radius * (rim + max(0.0, turned)), x + self.radius * (rim - min(0.0, turned))
        return Box(float(left), y - tall, float(right), y + tall)

    def _compute_angle(self, uv: Points, t: Time) -> Float[Tensor, "*n"]:
        return (uv[..., 0] - self.center[0]) / self.radius + self.radians_per_frame * t


def _solve_fixed_point(target: Points, shift: Callable[[Points], Points]) -> Points:
    """Solves x + shift(x) = target for a shift that contracts, by iteration until nothing moves any more."""
    x, max_iterations = target, 100
    for _ in range(max_iterations):
        before, x = x, target - shift(x)
        if not len(x) or (x - before).abs().max() < 4 * torch.finfo(x.dtype).eps:
            break
    return x


@dataclass(frozen=True, eq=False)
class PlanarSurface:
    """One painted layer of a synthetic clip."""

    name: str
    texture: Float[ndarray, "h w 3"]  # RGB in [0, 1], covers `box`
    box: Box
    outline_distance: (
        Float[ndarray, "rows columns"] | None
    )  # to the outline in uv units, negative inside; None: covers everything
    transforms: Float[
        ndarray, "frames numbers 3"
    ]  # xy units of each frame to the plane: affine (2 rows) or homography (3)
    warp: SurfaceWarp | None = None  # map from the plane to uv; without one they are the same

    def transform_at(self, t: Time) -> Float[ndarray, "rows 3"]:
        """Returns the transform at a time; between and beyond the frames its numbers are linear in time."""
        if (t == int(t) and 0 <= t < len(self.transforms)) or len(self.transforms) == 1:
            return self.transforms[min(int(t), len(self.transforms) - 1)]
        before = min(max(0, int(np.floor(t))), len(self.transforms) - 2)
        return self.transforms[before] + (t - before) * (self.transforms[before + 1] - self.transforms[before])

    def plane_at(self, t: Time, xy: Points) -> Points:
        """Computes points of the plane at xy units of a time."""
        return apply_transform(self.transform_at(t), xy)

    def uv_at(self, t: Time, xy: Points) -> Points:
        """Computes uv at xy units of a time."""
        plane = self.plane_at(t, xy)
        return plane if self.warp is None else self.warp.to_uv(plane, t)

    def xy_at(self, t: Time, uv: Points) -> Points:
        """Computes the xy units of points of the surface at a time; also of hidden ones and beyond the frame."""
        plane = uv if self.warp is None else self.warp.to_plane(uv, t)
        return apply_transform(invert_transform(self.transform_at(t)), plane)

    def faces_camera(self, t: Time, uv: Points) -> Bool[Tensor, "*n"]:
        """Returns whether points of the surface face the camera."""
        return (self.warp or SurfaceWarp()).faces_camera(uv, t)

    @property
    def has_no_outline(self) -> bool:
        """Returns whether the surface has no outline."""
        return self.outline_distance is None and not isinstance(self.warp, CylinderWarp)


def apply_transform(matrix: Float[ndarray, "rows 3"], xy: Points) -> Points:
    """Applies an affine map (2 rows) or a homography (3 rows) to points."""
    numbers = torch.from_numpy(np.ascontiguousarray(matrix)).to(xy.dtype)
    moved = xy @ numbers[:, :2].T + numbers[:, 2]
    return moved if len(numbers) == 2 else moved[..., :2] / moved[..., 2:]


def invert_transform(matrix: Float[ndarray, "rows 3"]) -> Float[ndarray, "rows 3"]:
    """Inverts an affine map or a homography, in the same form."""
    if len(matrix) == 3:
        return np.linalg.inv(matrix)
    linear = np.linalg.inv(matrix[:, :2])
    return np.concatenate([linear, -(linear @ matrix[:, 2])[:, None]], axis=1)
