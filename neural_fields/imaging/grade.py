"""The settings of a color grade, as edit.json holds them; `color_grading.py` applies them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

CURVES = ("curve", "curve_red", "curve_green", "curve_blue")

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
