"""Colors as functions of a 3D point, for the surfaces of the synthetic scene.

A paint takes points (meters, in the rest space of the surface) to RGB in [0, 1]. All are smooth: edges are
some centimeters wide, so that pictures of 100 pixels show them without jagged edges.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from neural_fields.data.synthetic.primitives import Vector

Points = Float[ndarray, "n 3"]
Paint = Callable[[Points], Points]


@dataclass(frozen=True)
class FlatColor:
    """One color."""

    color: Vector

    def __call__(self, points: Points) -> Points:
        """Returns the color for each point."""
        return np.tile(np.asarray(self.color, np.float64), (len(points), 1))


@dataclass(frozen=True)
class Bands:
    """Two paints in turn, across `along` (a unit vector), every `period` meters; `shift` is a share of the period."""

    first: Paint
    second: Paint
    along: Vector
    period: float
    shift: float = 0.0

    def __call__(self, points: Points) -> Points:
        """Computes the color of each point; the paints change by a sine along `along`, with soft edges."""
        phase = points @ np.asarray(self.along) / self.period + self.shift
        return _mix_colors(self.first(points), self.second(points), _flatten_wave(np.sin(2 * np.pi * phase)))


@dataclass(frozen=True)
class Checks:
    """Two paints in turn like the fields of a chess board; `periods` in meters, infinite along axes without change."""

    first: Paint
    second: Paint
    periods: Vector

    def __call__(self, points: Points) -> Points:
        """Computes the color of each point; the paints change by a product of sines along the axes, with soft edges."""
        waves = [
            np.sin(2 * np.pi * points[:, axis] / period)
            for axis, period in enumerate(self.periods)
            if np.isfinite(period)
        ]
        return _mix_colors(self.first(points), self.second(points), _flatten_wave(1.6 * np.prod(waves, axis=0)))


@dataclass(frozen=True)
class Rings:
    """Two paints in turn in shells around a point, every `period` meters."""

    first: Paint
    second: Paint
    center: Vector
    period: float

    def __call__(self, points: Points) -> Points:
        """Computes the color of each point; the paints change by a sine of the distance to `center`; edges are soft."""
        radius = np.sqrt(np.sum((points - self.center) ** 2, axis=1) + (0.1 * self.period) ** 2)
        return _mix_colors(
            self.first(points), self.second(points), _flatten_wave(np.sin(2 * np.pi * radius / self.period))
        )


@dataclass(frozen=True)
class SplitPaint:
    """One paint on the side that `towards` (a unit vector) points to from the place `at` on it, another behind."""

    front: Paint
    back: Paint
    towards: Vector
    at: float = 0.0
    width: float = 0.03  # distance in meters over which the paints blend

    def __call__(self, points: Points) -> Points:
        """Computes the color of each point: `front` ahead of `at`, `back` behind it, blended around it."""
        ahead = (points @ np.asarray(self.towards) - self.at) / self.width
        return _mix_colors(self.back(points), self.front(points), 0.5 + 0.5 * np.tanh(2 * ahead))


@dataclass(frozen=True)
class Spots:
    """A paint with soft round spots: (center, radius in meters, color) each, later ones on top."""

    base: Paint
    spots: tuple[tuple[Vector, float, Vector], ...]

    def __call__(self, points: Points) -> Points:
        """Computes the color of each point: that of `base`, with the spots blended over it in their order."""
        result = self.base(points)
        for center, radius, color in self.spots:
            away = np.sum((points - center) ** 2, axis=1) / radius**2
            result = _mix_colors(result, np.asarray(color), 1 / (1 + away**3))
        return result


@dataclass(frozen=True)
class Clouds:
    """A paint with slow random changes of brightness and hue: cosines no shorter than `wavelength` meters."""

    base: Paint
    strength: float
    wavelength: float
    seed: int
    count: int = 12  # number of cosines

    def __call__(self, points: Points) -> Points:
        """Computes the color of each point: that of `base` plus the cosines of `seed`, clipped to [0, 1]."""
        rng = np.random.default_rng(self.seed)
        vectors = rng.standard_normal((self.count, 3))
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors *= 2 * np.pi / (lengths * self.wavelength * rng.uniform(1, 3, (self.count, 1)))
        waves = np.cos(points @ vectors.T + rng.uniform(0, 2 * np.pi, self.count))
        hues = rng.standard_normal((self.count, 3)) * 0.6 + rng.standard_normal((self.count, 1))
        return np.clip(self.base(points) + self.strength / np.sqrt(self.count) * (waves @ hues), 0, 1)


def hue_to_rgb(angle: float, saturation: float = 0.7, value: float = 0.85) -> Vector:
    """Converts a hue to RGB.

    Args:
        angle: hue in turns; 0 is red, 1/3 green.
        saturation: 0 to 1.
        value: 0 to 1.

    Returns:
        Red, green and blue in [0, 1].

    Example:
        >>> hue_to_rgb(0.0, saturation=1.0, value=1.0)
        (1.0, 0.0, 0.0)
    """
    return colorsys.hsv_to_rgb(angle % 1.0, saturation, value)


def _flatten_wave(wave: Float[ndarray, " n"]) -> Float[ndarray, " n"]:
    """Converts a wave in [-1, 1] to a weight with flat tops and soft edges."""
    return 0.5 + 0.5 * np.tanh(2.2 * wave) / np.tanh(2.2)


def _mix_colors(first: Points, second: Points | Float[ndarray, "3"], weight: Float[ndarray, " n"]) -> Points:
    """Interpolates between two colors."""
    return first + weight[:, None] * (second - first)
