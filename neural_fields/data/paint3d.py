"""Colours as functions of a point in space, for the surfaces of the synthetic scene.

A paint takes points (metres, in the space of what carries the surface) to RGB in [0, 1]. All are smooth: edges are
some centimetres wide, so that pictures of 100 pixels show them without jagged edges.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from neural_fields.data.shapes3d import Vector

Points = Float[ndarray, "n 3"]
Paint = Callable[[Points], Points]
WAVES = 12  # cosines that make clouds


@dataclass(frozen=True)
class Flat:
    """One colour."""

    colour: Vector

    def __call__(self, points: Points) -> Points:
        return np.tile(np.asarray(self.colour, np.float64), (len(points), 1))


@dataclass(frozen=True)
class Bands:
    """Two paints in turn, across `along` (a unit vector), every `period` metres; `shift` is a share of the period."""

    first: Paint
    second: Paint
    along: Vector
    period: float
    shift: float = 0.0

    def __call__(self, points: Points) -> Points:
        phase = points @ np.asarray(self.along) / self.period + self.shift
        return _mix(self.first(points), self.second(points), _soft(np.sin(2 * np.pi * phase)))


@dataclass(frozen=True)
class Checks:
    """Two paints in turn like the fields of a chess board; `periods` in metres, infinite along axes without change."""

    first: Paint
    second: Paint
    periods: Vector

    def __call__(self, points: Points) -> Points:
        waves = [
            np.sin(2 * np.pi * points[:, axis] / period)
            for axis, period in enumerate(self.periods)
            if np.isfinite(period)
        ]
        return _mix(self.first(points), self.second(points), _soft(1.6 * np.prod(waves, axis=0)))


@dataclass(frozen=True)
class Rings:
    """Two paints in turn in shells around a point, every `period` metres."""

    first: Paint
    second: Paint
    centre: Vector
    period: float

    def __call__(self, points: Points) -> Points:
        radius = np.sqrt(np.sum((points - self.centre) ** 2, axis=1) + (0.1 * self.period) ** 2)
        return _mix(self.first(points), self.second(points), _soft(np.sin(2 * np.pi * radius / self.period)))


@dataclass(frozen=True)
class Split:
    """One paint on the side that `towards` (a unit vector) points to from the place `at` on it, another behind."""

    front: Paint
    back: Paint
    towards: Vector
    at: float = 0.0
    width: float = 0.03  # metres over which they blend

    def __call__(self, points: Points) -> Points:
        ahead = (points @ np.asarray(self.towards) - self.at) / self.width
        return _mix(self.back(points), self.front(points), 0.5 + 0.5 * np.tanh(2 * ahead))


@dataclass(frozen=True)
class Spots:
    """A paint with soft round spots: (centre, radius in metres, colour) each, later ones on top."""

    base: Paint
    spots: tuple[tuple[Vector, float, Vector], ...]

    def __call__(self, points: Points) -> Points:
        result = self.base(points)
        for centre, radius, colour in self.spots:
            away = np.sum((points - centre) ** 2, axis=1) / radius**2
            result = _mix(result, np.asarray(colour), 1 / (1 + away**3))
        return result


@dataclass(frozen=True)
class Clouds:
    """A paint with slow random changes of brightness and hue: cosines no shorter than `wavelength` metres."""

    base: Paint
    strength: float
    wavelength: float
    seed: int

    def __call__(self, points: Points) -> Points:
        rng = np.random.default_rng(self.seed)
        ways = rng.standard_normal((WAVES, 3))
        ways *= (
            2 * np.pi / (np.linalg.norm(ways, axis=1, keepdims=True) * self.wavelength * rng.uniform(1, 3, (WAVES, 1)))
        )
        waves = np.cos(points @ ways.T + rng.uniform(0, 2 * np.pi, WAVES))
        hues = rng.standard_normal((WAVES, 3)) * 0.6 + rng.standard_normal((WAVES, 1))
        return np.clip(self.base(points) + self.strength / np.sqrt(WAVES) * (waves @ hues), 0, 1)


def hue(angle: float, saturation: float = 0.7, value: float = 0.85) -> Vector:
    """A colour by its place on the colour circle, in turns."""
    return colorsys.hsv_to_rgb(angle % 1.0, saturation, value)


def _soft(wave: Float[ndarray, " n"]) -> Float[ndarray, " n"]:
    """A wave in [-1, 1] as a weight with flat tops and soft edges."""
    return 0.5 + 0.5 * np.tanh(2.2 * wave) / np.tanh(2.2)


def _mix(first: Points, second: Points | Float[ndarray, "3"], weight: Float[ndarray, " n"]) -> Points:
    return first + weight[:, None] * (second - first)
