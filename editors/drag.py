"""Drag edits: points of an object are dragged in one frame, and what is around them goes along, in all frames.

As the dragged points of Gu et al., "VideoSwap" (CVPR 2024, 3.3): the displacement is carried from the frame to the
canonical plane by the frame's map, and from there to every frame through the inverse of its map. Around a point the
displacement falls off as Wendland's compactly supported function phi(r) = (1 - r)^4 (4 r + 1) ("Piecewise polynomial,
positive definite and compactly supported radial functions of minimal degree", 1995): beyond the radius nothing moves.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from editors.base import EditorResult, Report, Source
from editors.shape import LayerInFrame, carried, check_places, layer_in_frame, only_layer, parts_note, run_frame
from editors.shape_points import STILL, Points, parse_pairs, parse_points
from neural_fields.config_flags import Repeated
from neural_fields.errors import UserError, bad_input

LENGTHS = 4.0  # of the longest drag: how far around a point the object goes along, unless the object is larger
SHARE = 0.3  # of the object's size: the same
LARGER = (1.0, 1.5, 2.25, 3.5)  # times that, where several drags leave no other way
FARTHEST = 4.0  # times the longer side of the frame: a larger radius is no radius
APART = 0.5  # pixels; points nearer than that are the same
THINNEST = 0.1  # of its area: what a drag squeezes or stretches more counts as folded
SIDE = 160  # of the grid that is looked at for folds
HALVINGS = 12  # to find the largest length that does not fold

Held = Float[np.ndarray, "held 2"]

EXAMPLE = '--drag "120,80>140,80"'


@dataclass(frozen=True, kw_only=True)
class Drag:
    """Drag points of an object in one frame; what is around them goes along, in every frame."""

    name: ClassVar[str] = "drag"

    drag: Repeated = ()
    """A point and where it is dragged to, in pixels of that frame: "x,y>x,y". Repeatable."""
    hold: Repeated = ()
    """A point that stays where it is: "x,y". Repeatable."""
    frame: int | None = None
    """Number of the frame in the source that the points are seen in, 0 is the first (default: the middle one)."""
    radius: float | None = None
    """How many pixels around a point go along, the less the farther (default: by the object and the longest drag)."""

    def __call__(self, source: Source, report: Report) -> EditorResult:
        """The deformation of one layer.

        Raises:
            UserError: no drag, points that contradict each other or are not on the layer, a drag that folds.
        """
        layer = only_layer(source)
        rows, held = parse_pairs(self.drag, "--drag"), parse_points(self.hold, "--hold")
        start, end = rows[:, :2], rows[:, 2:]
        check_drags(start, end, held)
        number, t = run_frame(source, self.frame)
        report("dragging", 0, 1)
        here = layer_in_frame(source, layer, t)
        check_places(here, start, np.ones(len(start), bool))
        check_places(here, np.concatenate([end, held]), np.zeros(len(end) + len(held), bool))
        field = self._field(here, start, end, held)
        scale = here.scale
        low, high = (corner * scale for corner in field.rectangle)
        shape = carried(here.found, low, high, lambda places: places - field.at(places / scale) * scale)
        report("dragging", 1, 1)
        facts = {"frame": number, "points": np.round(rows, 2).tolist(), "radius": round(field.radius, 1)}
        note = f"what lies within {field.radius:.0f} pixels of a point goes along; --radius changes that"
        return EditorResult(
            {}, (*([note] if self.radius is None else []), *parts_note(source, layer)), facts, {layer: shape}
        )

    def _field(self, here: LayerInFrame, start: Points, end: Points, held: Held) -> Field:
        """The displacement in pixels of the source.

        Raises:
            UserError: a bad radius, or one with which the drags fold (exit 3).
        """
        longest = float(np.linalg.norm(end - start, axis=1).max())
        if self.radius is None:
            own = max(LENGTHS * longest, SHARE * float(np.sqrt(here.seen.sum() / here.scale.prod())))
            radii = [factor * own for factor in LARGER]
        else:
            most = FARTHEST * max(here.size)
            if not longest < self.radius <= most:
                raise bad_input(
                    f"--radius {self.radius:g} does not fit the drags",
                    why=f"the longest is {longest:.1f} pixels, and at most {most:.0f} make sense",
                    fix=f"--radius {LENGTHS * longest:.0f}, or leave it out",
                )
            radii = [self.radius]
        for radius in radii:
            field = field_of(start, end, held, radius)
            if field.least_area() >= THINNEST:
                return field
        raise _folded(here.layer, start, end, held, radii)


def check_drags(start: Points, end: Points, held: Held) -> None:
    """Refuses drags that tell nothing, or contradict each other.

    Raises:
        UserError: no drag, one that moves nothing, or one place for two points (exit 3).
    """
    if not len(start):
        raise bad_input("no point is dragged", fix=EXAMPLE)
    for point, length in zip(start, np.linalg.norm(end - start, axis=1), strict=True):
        if length < STILL:
            raise bad_input(
                f"the drag of {_shown(point)} moves nothing", fix=f'--hold "{_shown(point)}", or another place for it'
            )
    for points, what in ((start, "two drags start at"), (end, "two drags end at"), (held, "two points are held at")):
        for one, other in combinations(points, 2):
            if np.linalg.norm(one - other) < APART:
                raise bad_input(f"{what} {_shown(one)}", fix="leave one of them out")
    for point in held:
        for places, what in ((start, "dragged away"), (end, "the end of a drag")):
            if len(places) and np.linalg.norm(places - point, axis=1).min() < APART:
                raise bad_input(f"the point {_shown(point)} is held, and {what} too", fix="leave one of them out")


@dataclass(frozen=True)
class Field:
    """A backward displacement: what is shown at x lay at x minus this. Everything is in pixels.

    Attributes:
        centres: where drags end, and points that are held.
        weights: of the falling-off functions around them.
        radius: beyond which they are zero.
    """

    centres: Float[np.ndarray, "n 2"]
    weights: Float[np.ndarray, "n 2"]
    radius: float

    @property
    def rectangle(self) -> tuple[Float[np.ndarray, "2"], Float[np.ndarray, "2"]]:
        """Two corners of the part of the plane that it moves, with a margin."""
        margin = 1.02 * self.radius + 1
        return self.centres.min(axis=0) - margin, self.centres.max(axis=0) + margin

    def at(self, points: Points) -> Points:
        """The displacement at any points."""
        return sum(_wendland(np.linalg.norm(points - centre, axis=1) / self.radius)[:, None] * weight
                   for centre, weight in zip(self.centres, self.weights, strict=True))  # fmt: skip

    def least_area(self) -> float:
        """The smallest or, if that is less, the inverse of the largest share by which a small area changes."""
        areas = self._areas()
        return float(min(areas.min(), 1 / max(areas.max(), 1e-9)))

    def worst(self) -> Float[np.ndarray, "2"]:
        """Where the area changes most."""
        areas = self._areas()
        return self._grid()[np.argmin(np.minimum(areas, 1 / np.maximum(areas, 1e-9)))]

    def _grid(self) -> Points:
        low, high = self.rectangle
        x, y = (np.linspace(low[axis], high[axis], SIDE) for axis in (0, 1))
        return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)

    def _areas(self) -> Float[np.ndarray, " m"]:
        """Area of the source of a small square, over its own: below zero where it is turned over."""
        points = self._grid()
        slope = np.zeros((len(points), 2, 2))
        for centre, weight in zip(self.centres, self.weights, strict=True):
            away = (points - centre) / self.radius
            r = np.linalg.norm(away, axis=1)
            # d phi / dr = -20 r (1 - r)^3, along `away` / r
            along = (-20 * np.maximum(0, 1 - r) ** 3)[:, None] * away / self.radius
            slope += weight[:, None] * along[:, None, :]
        return (1 - slope[:, 0, 0]) * (1 - slope[:, 1, 1]) - slope[:, 0, 1] * slope[:, 1, 0]


def field_of(start: Points, end: Points, held: Held, radius: float) -> Field:
    """The displacement that takes `start` to `end` and leaves `held` where it is."""
    centres = np.concatenate([end, held])
    apart = np.linalg.norm(centres[:, None] - centres[None], axis=-1) / radius
    values = np.concatenate([end - start, np.zeros_like(held)])
    return Field(centres, np.linalg.solve(_wendland(apart), values), radius)


def _wendland(r: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    return np.maximum(0, 1 - r) ** 4 * (4 * r + 1)


def _folded(layer: str, start: Points, end: Points, held: Held, radii: list[float]) -> UserError:
    """What to say where drags fold: where, and how far they may go."""
    best = max(_longest_share(start, end, held, radius) for radius in radii)
    lengths = np.linalg.norm(end - start, axis=1)
    number = int(lengths.argmax())
    x, y = field_of(start, end, held, radii[-1]).worst()
    most = np.floor(10 * best * lengths[number]) / 10
    place = start[number] + (end - start)[number] * most / lengths[number]
    why = (
        f"with a radius of {radii[-1]:.0f} pixels the longest drag may be {most:g} of its {lengths[number]:.1f} pixels"
    )
    shorter = f'--drag "{_shown(start[number])}>{_shown(place)}"' + (" and the others shorter alike" * (len(start) > 1))
    return bad_input(f"the drags fold the layer {layer} near {x:.0f},{y:.0f}", why=why, fix=shorter)


def _longest_share(start: Points, end: Points, held: Held, radius: float) -> float:
    """The largest part of all drags that does not fold."""
    good, bad = 0.0, 1.0
    for _ in range(HALVINGS):
        share = (good + bad) / 2
        if field_of(start, start + share * (end - start), held, radius).least_area() >= THINNEST:
            good = share
        else:
            bad = share
    return good


def _shown(point: Float[np.ndarray, "2"]) -> str:
    return f"{point[0]:.4g},{point[1]:.4g}"
