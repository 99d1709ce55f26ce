"""The static room of the synthetic scene, painted so that every direction looks different.

Meters, z up: the ground is z = 0, its middle the origin. Patterns are no finer than half a meter, which is more than
five pixels where a camera of 100 pixels sees a wall.
"""

from __future__ import annotations

import numpy as np

from neural_fields.data.synthetic.primitives import Cuboid, Primitive, Vector, Wall
from neural_fields.data.synthetic.procedural_colors import (
    Bands,
    Checks,
    Clouds,
    FlatColor,
    Paint,
    Rings,
    Spots,
    hue_to_rgb,
)

UP: Vector = (0.0, 0.0, 1.0)


def make_room_parts(seed: int) -> list[tuple[Primitive, Paint]]:
    """Builds the ground, four walls with different patterns, a ceiling, and two boxes behind the cameras' path."""
    half, height = 4.0, 3.4  # meters from the middle to the walls, and from the ground to the ceiling

    def make_plain(angle: float, saturation: float = 0.35, value: float = 0.8) -> Paint:
        """Makes a plain paint.

        Args:
            angle: hue in turns, 0 to 1, before that of the seed is added.
            saturation: 0 to 1.
            value: brightness, 0 to 1.
        """
        return FlatColor(hue_to_rgb(angle + 0.137 * seed, saturation, value))

    endless = np.inf
    ground = Checks(make_plain(0.1, 0.3, 0.72), make_plain(0.6, 0.3, 0.5), (1.6, 1.6, endless))
    east = Rings(make_plain(0.55), make_plain(0.02, 0.5, 0.85), (half, 0.6, 1.6), 1.1)
    west = Bands(make_plain(0.33, 0.4, 0.6), make_plain(0.14, 0.45, 0.9), (0.0, 0.8, 0.6), 1.2)
    north = Checks(make_plain(0.75, 0.35, 0.7), make_plain(0.9, 0.2, 0.9), (1.9, endless, 1.7))
    south = Spots(
        Bands(make_plain(0.08, 0.2, 0.85), make_plain(0.5, 0.3, 0.75), UP, 1.4),
        tuple(
            ((x, -half, z), radius, hue_to_rgb(angle + 0.137 * seed, 0.7, 0.8))
            for x, z, radius, angle in (
                (-2.6, 1.5, 0.6, 0.0),
                (-0.9, 2.2, 0.45, 0.35),
                (0.5, 1.1, 0.6, 0.62),
                (2.3, 1.9, 0.7, 0.13),
            )
        ),
    )
    walls: tuple[tuple[Vector, Vector, Paint], ...] = (
        ((0.0, 0.0, 0.0), (0.0, 0.0, 1.0), ground),
        ((0.0, 0.0, height), (0.0, 0.0, -1.0), make_plain(0.15, 0.1, 0.9)),
        ((half, 0.0, 0.0), (-1.0, 0.0, 0.0), east),
        ((-half, 0.0, 0.0), (1.0, 0.0, 0.0), west),
        ((0.0, half, 0.0), (0.0, -1.0, 0.0), north),
        ((0.0, -half, 0.0), (0.0, 1.0, 0.0), south),
    )
    parts: list[tuple[Primitive, Paint]] = [
        (Wall(point, facing), Clouds(paint, 0.12, 0.9, 100 * seed + index))
        for index, (point, facing, paint) in enumerate(walls)
    ]
    crate = Bands(make_plain(0.07, 0.6, 0.7), make_plain(0.12, 0.35, 0.9), (0.6, 0.0, 0.8), 0.5)
    chest = Checks(make_plain(0.62, 0.6, 0.7), make_plain(0.45, 0.3, 0.9), (0.7, 0.7, 0.7))
    parts.append((Cuboid((-3.4, 1.1, 0.5), (0.45, 0.5, 0.5)), crate))
    parts.append((Cuboid((0.9, 3.4, 0.35), (0.6, 0.4, 0.35)), chest))
    return parts
