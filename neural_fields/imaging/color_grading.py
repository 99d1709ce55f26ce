"""Color grades: changes of the colors of a layer, pixel by pixel.

A grade changes the pixels of the frame, so that grain, detail and light are kept. Colors are display referred, in
[0, 1]; only exposure is computed in linear light (the sRGB curve, IEC 61966-2-1), as in a camera.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import cv2
import numpy as np
from jaxtyping import Float

CURVES = ("curve", "curve_red", "curve_green", "curve_blue")
LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)  # of Rec. 709

Rgb = Float[np.ndarray, "*pixels 3"]
Curve = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Grade:
    """Changes colors: first blur and sharpening, then exposure, curves, hue and saturation. The defaults do nothing.

    Attributes:
        exposure: stops of light, -10 to 10; 1 doubles the light.
        curve: points (in, out) from 0 to 1 of a smooth curve for all channels; it is constant before the first and
            after the last point.
        curve_red: the same for the red channel.
        curve_green: the same for the green channel.
        curve_blue: the same for the blue channel.
        hue: degrees by which colors are rotated around gray, -360 to 360.
        saturation: factor, 0 to 10: 0 is gray, 1 changes nothing, 2 doubles it.
        blur: standard deviation of a Gaussian as a share of the frame's longer side, 0 to 0.1. Only pixels of the
            layer are averaged.
        sharpen: the amount of detail finer than `radius` that is added, 0 to 10.
        radius: the size of that detail as a share of the frame's longer side, 0.0001 to 0.1.

    Raises:
        ValueError: a value out of its range, or curve points that do not rise.

    Example:
        >>> print(Grade(exposure=1.0).apply(np.float32([[0.5, 0.5, 0.5]])).round(2))
        [[0.69 0.69 0.69]]
        >>> print(Grade(saturation=0.0).apply(np.float32([[1, 0, 0]])).round(2))
        [[0.21 0.21 0.21]]
    """

    exposure: float = 0.0
    curve: Curve = ()
    curve_red: Curve = ()
    curve_green: Curve = ()
    curve_blue: Curve = ()
    hue: float = 0.0
    saturation: float = 1.0
    blur: float = 0.0
    sharpen: float = 0.0
    radius: float = 0.002

    def __post_init__(self) -> None:
        for name, low, high in (
            ("exposure", -10, 10),
            ("hue", -360, 360),
            ("saturation", 0, 10),
            ("sharpen", 0, 10),
            ("radius", 1e-4, 0.1),
            ("blur", 0, 0.1),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} is {value:g}; it is {low} to {high}")
        for name in CURVES:
            points: Curve = getattr(self, name)
            xs = [x for x, _ in points]
            if len(points) == 1 or any(not (0 <= x <= 1 and 0 <= y <= 1) for x, y in points):
                raise ValueError(f"{name} takes two points or more, in and out from 0 to 1")
            if any(later <= earlier for earlier, later in pairwise(xs)):
                places = ", ".join(f"{x:g}" for x in xs)
                raise ValueError(f"the points of {name} do not go from left to right: {places}")

    @property
    def does_nothing(self) -> bool:
        """Whether the grade leaves colors unchanged."""
        return self == Grade(radius=self.radius)

    @property
    def reads_neighbors(self) -> bool:
        """Whether a pixel's color depends on its neighbors."""
        return self.sharpen > 0 or self.blur > 0

    def apply(self, rgb: Rgb) -> Rgb:
        """Applies the grade to colors, without `blur` and `sharpen`, which need the neighbors of a pixel.

        Args:
            rgb: colors in [0, 1].

        Returns:
            The changed colors, float32 in [0, 1].
        """
        shape = rgb.shape
        result = np.ascontiguousarray(rgb.reshape(-1, 3), np.float32)
        if self.exposure or any(getattr(self, name) for name in CURVES):
            table, channels = self._tone_table, np.arange(3)
            places = np.clip(result, 0, 1) * (len(table) - 1)
            below = np.minimum(places.astype(np.int32), len(table) - 2)
            part = places - below
            result = table[below, channels] * (1 - part) + table[below + 1, channels] * part
        if self.hue or self.saturation != 1:
            result = np.clip(result @ self._color_matrix.T, 0, 1)
        return result.reshape(shape).astype(np.float32)

    @cached_property
    def _tone_table(self) -> Float[np.ndarray, "steps 3"]:
        """Exposure and curves at even steps of a channel's value; between them they are linear."""
        values = np.linspace(0, 1, 4096)
        linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4) * 2.0**self.exposure
        shown = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055)
        values = np.clip(shown, 0, 1) if self.exposure else values
        values = _apply_curve(self.curve, values)
        single = [_apply_curve(getattr(self, name), values) for name in CURVES[1:]]
        return np.stack(single, axis=1).astype(np.float32)

    @cached_property
    def _color_matrix(self) -> Float[np.ndarray, "3 3"]:
        """Hue and saturation as one linear map that keeps luma: a rotation around gray, and a scale about luma."""
        angle = np.deg2rad(self.hue)
        cos, sin = np.cos(angle), np.sin(angle)
        axis = np.full((3, 3), 1 / 3)
        across = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
        rotation = cos * np.eye(3) + sin * across + (1 - cos) * axis  # Rodrigues: 120 degrees permute the channels
        rotation = rotation + np.ones((3, 1)) * (LUMA - LUMA @ rotation)
        gray = np.broadcast_to(LUMA, (3, 3))
        return ((self.saturation * np.eye(3) + (1 - self.saturation) * gray) @ rotation).astype(np.float32)


def smooth_colors(
    rgb: Float[np.ndarray, "height width 3"], weight: Float[np.ndarray, "height width"], radius: float
) -> Float[np.ndarray, "height width 3"]:
    """Averages colors with a Gaussian over the pixels that have weight (normalized convolution).

    Args:
        rgb: colors in [0, 1].
        weight: weight of each pixel in the average, at least 0; where no neighbor has any, the color stays.
        radius: standard deviation of the Gaussian, in pixels.

    Returns:
        The averaged colors.
    """
    total = cv2.GaussianBlur(weight, (0, 0), radius)
    sums = cv2.GaussianBlur(rgb * weight[..., None], (0, 0), radius)
    return np.where(total[..., None] > 1e-4, sums / np.maximum(total, 1e-4)[..., None], rgb).astype(np.float32)


def _apply_curve(points: Curve, values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Applies a curve, which neither overshoots its points nor falls between rising ones."""
    if not points:
        return values
    from scipy.interpolate import PchipInterpolator

    x, y = np.array(points).T
    return np.clip(PchipInterpolator(x, y)(np.clip(values, x[0], x[-1])), 0, 1)
