"""Solids with ray intersections in closed form. All rays of a call start at one point, as those of a camera do.

A shape computes the distance to its first intersection with each ray (infinity: none), its normals, and a bounding
ball, so that rays which pass far away cost nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

Vector = tuple[float, float, float]
Points = Float[ndarray, "n 3"]
Distances = Float[ndarray, " n"]


@runtime_checkable  # for the shape checks of the tests
class Primitive(Protocol):
    """A surface in the rest space of a bone, or in the world."""

    def intersect_rays(self, origin: Float[ndarray, "3"], directions: Points) -> Distances:
        """Computes the distance along unit directions to the first point of the surface ahead; infinity for none."""

    def compute_normals(self, points: Points) -> Points:
        """Computes outward unit normals at points of the surface."""

    def bounding_ball(self) -> tuple[Vector, float]:
        """Returns center and radius of a bounding ball; an infinite radius for a surface without end."""


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid along the axes; with three equal radii a ball."""

    center: Vector
    radii: Vector

    def intersect_rays(self, origin: Float[ndarray, "3"], directions: Points) -> Distances:
        """See `Primitive.intersect_rays`; rays that start inside hit the surface from within."""
        away, scaled = (origin - self.center) / self.radii, directions / self.radii
        first, second = _solve_quadratic(_dot_rows(scaled, scaled), scaled @ away, away @ away - 1)
        return np.minimum(_drop_behind(first), _drop_behind(second))

    def compute_normals(self, points: Points) -> Points:
        """See `Primitive.compute_normals`."""
        return _normalize_rows((points - self.center) / np.square(self.radii))

    def bounding_ball(self) -> tuple[Vector, float]:
        """Returns the center and the largest of the radii."""
        return self.center, max(self.radii)


@dataclass(frozen=True)
class RoundCone:
    """The volume that a ball of changing radius sweeps from `start` to `end`: a limb.

    Neither end's ball may contain the other's. With equal radii it is a capsule.
    """

    start: Vector
    end: Vector
    radii: tuple[float, float]

    def intersect_rays(self, origin: Float[ndarray, "3"], directions: Points) -> Distances:
        """See `Primitive.intersect_rays`: the nearest hit of the balls at both ends and the side between them."""
        axis, length, slope = self._compute_axis()
        first_ball = Ellipsoid(self.start, (self.radii[0],) * 3).intersect_rays(origin, directions)
        second_ball = Ellipsoid(self.end, (self.radii[1],) * 3).intersect_rays(origin, directions)
        # The side is where c^2 r^2 = (r0 - s x)^2: x along the axis, r away from it, s and c of the opening angle.
        away, radius, cosine2 = origin - self.start, self.radii[0], 1 - slope**2
        x, dx = away @ axis, directions @ axis
        first, second = _solve_quadratic(
            cosine2 - dx**2,
            cosine2 * (directions @ away) - x * dx + radius * slope * dx,
            cosine2 * (away @ away) - x**2 + 2 * radius * slope * x - radius**2,
        )
        sides = []
        for distance in (first, second):
            along = x + np.where(np.isfinite(distance), distance, 0) * dx
            wide = radius - slope * along  # negative on the cone's other half, beyond its tip
            foot = along - wide * slope / cosine2
            sides.append(np.where((wide >= 0) & (foot >= 0) & (foot <= length), _drop_behind(distance), np.inf))
        return np.minimum.reduce([first_ball, second_ball, *sides])

    def compute_normals(self, points: Points) -> Points:
        """Computes unit normals, which point away from the center of the ball that touches the surface there."""
        axis, length, slope = self._compute_axis()
        away = points - self.start
        along = away @ axis
        aside = np.sqrt(np.maximum(_dot_rows(away, away) - along**2, 0))
        foot = np.clip(along - aside * slope / np.sqrt(1 - slope**2), 0, length)
        return _normalize_rows(away - foot[:, None] * axis)

    def bounding_ball(self) -> tuple[Vector, float]:
        """Returns the middle of the axis, and half its length plus the larger radius."""
        x, y, z = (np.add(self.start, self.end) / 2).tolist()
        return (x, y, z), self._compute_axis()[1] / 2 + max(self.radii)

    def _compute_axis(self) -> tuple[Float[ndarray, "3"], float, float]:
        """Computes unit direction, length, and the sine of the angle between the side and the axis."""
        axis = np.subtract(self.end, self.start)
        length = float(np.linalg.norm(axis))
        return axis / length, length, (self.radii[0] - self.radii[1]) / length


@dataclass(frozen=True)
class Cuboid:
    """A box along the axes, hit from outside."""

    center: Vector
    half_sizes: Vector

    def intersect_rays(self, origin: Float[ndarray, "3"], directions: Points) -> Distances:
        """See `Primitive.intersect_rays`; rays that start inside hit nothing."""
        away = origin - self.center
        steps = np.where(np.abs(directions) < 1e-12, 1e-12, directions)
        middle, reach = -away / steps, np.abs(np.asarray(self.half_sizes) / steps)
        near, far = np.max(middle - reach, axis=1), np.min(middle + reach, axis=1)
        return np.where(near <= far, _drop_behind(near), np.inf)

    def compute_normals(self, points: Points) -> Points:
        """Computes outward unit normals, those of the faces that the points are nearest to."""
        away = (points - self.center) / self.half_sizes
        face = np.argmax(np.abs(away), axis=1)[:, None]
        result = np.zeros_like(away)
        np.put_along_axis(result, face, np.sign(np.take_along_axis(away, face, axis=1)), axis=1)
        return result

    def bounding_ball(self) -> tuple[Vector, float]:
        """Returns the center and half the diagonal."""
        return self.center, float(np.linalg.norm(self.half_sizes))


@dataclass(frozen=True)
class Wall:
    """An infinite plane through `point`, hit only from the side that `facing` (a unit vector) points to."""

    point: Vector
    facing: Vector

    def intersect_rays(self, origin: Float[ndarray, "3"], directions: Points) -> Distances:
        """See `Primitive.intersect_rays`; rays from behind pass through."""
        height, fall = (origin - self.point) @ np.asarray(self.facing), -(directions @ np.asarray(self.facing))
        return np.where(fall > 1e-12, _drop_behind(height / np.where(fall > 1e-12, fall, 1)), np.inf)

    def compute_normals(self, points: Points) -> Points:
        """Returns `facing` for each point."""
        return np.tile(np.asarray(self.facing, np.float64), (len(points), 1))

    def bounding_ball(self) -> tuple[Vector, float]:
        """Returns `point` and an infinite radius."""
        return self.point, np.inf


def find_rays_through_ball(
    origin: Float[ndarray, "3"], directions: Points, center: Float[ndarray, "3"], radius: float
) -> Int[ndarray, " k"]:
    """Finds the rays that pass through a ball.

    Args:
        origin: origin of all rays.
        directions: unit vectors.
        center: center of the ball.
        radius: radius of the ball, in the same unit; inf for all rays.

    Returns:
        The indices of the rays.
    """
    if not np.isfinite(radius):
        return np.arange(len(directions))
    towards = center - origin
    along = directions @ towards
    reach = towards @ towards - radius**2  # of the tangents, squared; negative: the rays start inside
    return np.flatnonzero((along > 0) & (along**2 >= reach)) if reach > 0 else np.arange(len(directions))


def _solve_quadratic(square: Distances, half: Distances, rest: float | Distances) -> tuple[Distances, Distances]:
    """Computes both solutions of square t^2 + 2 half t + rest = 0; infinity where there are none."""
    inner = half**2 - square * rest
    real = (inner >= 0) & (np.abs(square) > 1e-15)
    root, safe = np.sqrt(np.where(real, inner, 0)), np.where(real, square, 1)
    return np.where(real, (-half - root) / safe, np.inf), np.where(real, (-half + root) / safe, np.inf)


def _drop_behind(distance: Distances) -> Distances:
    """Replaces distances behind the origin by infinity; very near ones are the ray's own start."""
    nearest = 1e-6
    return np.where(distance > nearest, distance, np.inf)


def _dot_rows(first: Points, second: Points) -> Distances:
    """Computes the dot products of rows."""
    return np.einsum("nk,nk->n", first, second)


def _normalize_rows(vectors: Points) -> Points:
    """Scales rows to unit length."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
