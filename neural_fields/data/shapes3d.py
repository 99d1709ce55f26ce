"""Solids that rays hit in closed form. All rays of a call start at one point, as those of a camera do.

A shape says how far along each unit direction it is hit first (infinity: not at all), which way its surface faces at
a point on it, and which ball holds it, so that rays which pass far away cost nothing.
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
NEAR = 1e-6  # hits nearer than this are the ray's own start


@runtime_checkable  # for the shape checks of the tests
class Shape(Protocol):
    """A surface in the space of what carries it: a bone at rest, or the world."""

    def hit(self, origin: Float[ndarray, "3"], directions: Points) -> Distances:
        """Distance along unit directions to the first point of the surface ahead; infinity where there is none."""

    def normal(self, points: Points) -> Points:
        """Outward unit normals at points of the surface."""

    def ball(self) -> tuple[Vector, float]:
        """Centre and radius of a ball that holds it; an infinite radius for what has no end."""


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid along the axes; with three equal radii a ball."""

    centre: Vector
    radii: Vector

    def hit(self, origin: Float[ndarray, "3"], directions: Points) -> Distances:
        away, scaled = (origin - self.centre) / self.radii, directions / self.radii
        first, second = _roots(_dot(scaled, scaled), scaled @ away, away @ away - 1)
        return np.minimum(_ahead(first), _ahead(second))

    def normal(self, points: Points) -> Points:
        return _unit((points - self.centre) / np.square(self.radii))

    def ball(self) -> tuple[Vector, float]:
        return self.centre, max(self.radii)


@dataclass(frozen=True)
class RoundCone:
    """What a ball sweeps that goes from `start` to `end` and changes its radius on the way: a limb.

    Neither end's ball may hold the other's. With equal radii it is a capsule.
    """

    start: Vector
    end: Vector
    radii: tuple[float, float]

    def hit(self, origin: Float[ndarray, "3"], directions: Points) -> Distances:
        axis, length, slope = self._axis()
        balls = [
            Ellipsoid(place, (radius,) * 3).hit(origin, directions)
            for place, radius in zip((self.start, self.end), self.radii, strict=True)
        ]
        # The side is where c^2 r^2 = (r0 - s x)^2: x along the axis, r away from it, s and c of the opening angle.
        away, radius, cosine2 = origin - self.start, self.radii[0], 1 - slope**2
        x, dx = away @ axis, directions @ axis
        first, second = _roots(
            cosine2 - dx**2,
            cosine2 * (directions @ away) - x * dx + radius * slope * dx,
            cosine2 * (away @ away) - x**2 + 2 * radius * slope * x - radius**2,
        )
        sides = []
        for distance in (first, second):
            along = x + np.where(np.isfinite(distance), distance, 0) * dx
            wide = radius - slope * along  # negative on the cone's other half, beyond its tip
            foot = along - wide * slope / cosine2
            sides.append(np.where((wide >= 0) & (foot >= 0) & (foot <= length), _ahead(distance), np.inf))
        return np.minimum.reduce([*balls, *sides])

    def normal(self, points: Points) -> Points:
        axis, length, slope = self._axis()
        away = points - self.start
        along = away @ axis
        aside = np.sqrt(np.maximum(_dot(away, away) - along**2, 0))
        foot = np.clip(along - aside * slope / np.sqrt(1 - slope**2), 0, length)
        return _unit(away - foot[:, None] * axis)

    def ball(self) -> tuple[Vector, float]:
        x, y, z = (np.add(self.start, self.end) / 2).tolist()
        return (x, y, z), self._axis()[1] / 2 + max(self.radii)

    def _axis(self) -> tuple[Float[ndarray, "3"], float, float]:
        """Unit direction, length, and the sine of the angle at which the side closes in on it."""
        axis = np.subtract(self.end, self.start)
        length = float(np.linalg.norm(axis))
        return axis / length, length, (self.radii[0] - self.radii[1]) / length


@dataclass(frozen=True)
class Box:
    """A box along the axes, seen from outside."""

    centre: Vector
    half: Vector

    def hit(self, origin: Float[ndarray, "3"], directions: Points) -> Distances:
        away = origin - self.centre
        steps = np.where(np.abs(directions) < 1e-12, 1e-12, directions)
        middle, reach = -away / steps, np.abs(np.asarray(self.half) / steps)
        near, far = np.max(middle - reach, axis=1), np.min(middle + reach, axis=1)
        return np.where((near <= far) & (near > NEAR), near, np.inf)

    def normal(self, points: Points) -> Points:
        away = (points - self.centre) / self.half
        face = np.argmax(np.abs(away), axis=1)[:, None]
        result = np.zeros_like(away)
        np.put_along_axis(result, face, np.sign(np.take_along_axis(away, face, axis=1)), axis=1)
        return result

    def ball(self) -> tuple[Vector, float]:
        return self.centre, float(np.linalg.norm(self.half))


@dataclass(frozen=True)
class Wall:
    """A plane without end through `point`, seen only from the side that `facing` (a unit vector) points to."""

    point: Vector
    facing: Vector

    def hit(self, origin: Float[ndarray, "3"], directions: Points) -> Distances:
        height, fall = (origin - self.point) @ np.asarray(self.facing), -(directions @ np.asarray(self.facing))
        return np.where(fall > 1e-12, _ahead(height / np.where(fall > 1e-12, fall, 1)), np.inf)

    def normal(self, points: Points) -> Points:
        return np.tile(np.asarray(self.facing, np.float64), (len(points), 1))

    def ball(self) -> tuple[Vector, float]:
        return self.point, np.inf


def meets_ball(
    origin: Float[ndarray, "3"], directions: Points, centre: Float[ndarray, "3"], radius: float
) -> Int[ndarray, " k"]:
    """Indices of the unit directions that come within `radius` of `centre`."""
    if not np.isfinite(radius):
        return np.arange(len(directions))
    towards = centre - origin
    along = directions @ towards
    reach = towards @ towards - radius**2  # of the tangents, squared; negative: the rays start inside
    return np.flatnonzero((along > 0) & (along**2 >= reach)) if reach > 0 else np.arange(len(directions))


def _roots(square: Distances, half: Distances, rest: float | Distances) -> tuple[Distances, Distances]:
    """Both solutions of square t^2 + 2 half t + rest = 0; infinity where there are none."""
    inner = half**2 - square * rest
    real = (inner >= 0) & (np.abs(square) > 1e-15)
    root, safe = np.sqrt(np.where(real, inner, 0)), np.where(real, square, 1)
    return np.where(real, (-half - root) / safe, np.inf), np.where(real, (-half + root) / safe, np.inf)


def _ahead(distance: Distances) -> Distances:
    return np.where(distance > NEAR, distance, np.inf)


def _dot(first: Points, second: Points) -> Distances:
    return np.einsum("nk,nk->n", first, second)


def _unit(vectors: Points) -> Points:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
