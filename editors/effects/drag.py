"""`drag`: moves points of an object in one frame, and the area around them, in all frames.

This follows the dragged points of Gu et al., "VideoSwap" (CVPR 2024, 3.3): the frame's map transfers the displacement
to the canonical plane, and the inverse maps of the other frames transfer it to them. Around a point the displacement
falls off as Wendland's compactly supported function phi(r) = (1 - r)^4 (4 r + 1) ("Piecewise polynomial, positive
definite and compactly supported radial functions of minimal degree", 1995): beyond the radius nothing moves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from jaxtyping import Float

from editors.core.editor import EditorResult, PlanarEditor
from editors.core.source import EditSource
from editors.effects.shape import (
    LayerInFrame,
    check_point_positions,
    find_layer_in_frame,
    find_run_frame,
    require_one_layer,
    transfer_deformation,
)
from editors.effects.shape_points import DEFAULTS as POINTS
from editors.effects.shape_points import Points, parse_point_pairs, parse_points
from editors.options.effects import DragOptions
from neural_fields.core.errors import bad_input
from neural_fields.core.progress import Progress, ProgressReporter

HeldPoints = Float[np.ndarray, "held 2"]

EXAMPLE = '--drag "120,80>140,80"'


@dataclass(frozen=True)
class DragSettings:
    """Settings of the radius within which an object moves with a dragged point, and of the check for folds."""

    radius_lengths: float = 4.0  # the radius in lengths of the longest drag, unless the object gives a larger one
    radius_object_share: float = 0.3  # the radius as a share of the object's size
    radius_factors: tuple[float, ...] = (1.0, 1.5, 2.25, 3.5)  # tried in turn until several drags do not fold
    max_radius_share: float = 4.0  # largest radius, as a share of the longer side of the frame
    min_distance_px: float = 0.5  # points closer than this count as the same
    min_area_change: float = 0.1  # least factor of an area, or its inverse: a larger change counts as a fold
    grid_side: int = 160  # number of points along a side of the grid that is searched for folds
    halvings: int = 12  # to find the largest length that does not fold


DEFAULTS = DragSettings()


@dataclass(frozen=True, kw_only=True)
class Drag(DragOptions, PlanarEditor):
    """Drag points of an object in one frame; the area around them moves along, in every frame."""

    def edit(self, source: EditSource, report: ProgressReporter, settings: DragSettings = DEFAULTS) -> EditorResult:
        """Makes the deformation of one layer.

        Args:
            source: the run, and the layer to deform.
            report: called with the progress.
            settings: choice of the radius, and the check for folds.

        Raises:
            UserError: no drag, points that contradict each other or are not on the layer, a drag that folds.
        """
        layer = require_one_layer(source)
        rows, held = parse_point_pairs(self.drag, "--drag"), parse_points(self.hold, "--hold")
        start, end = rows[:, :2], rows[:, 2:]
        check_drags(start, end, held, settings)
        number, t = find_run_frame(source, self.frame)
        report(Progress("dragging", 0, 1))
        here = find_layer_in_frame(source, layer, t)
        check_point_positions(here, start, np.ones(len(start), bool))
        check_point_positions(here, np.concatenate([end, held]), np.zeros(len(end) + len(held), bool))
        field = self._choose_field(here, start, end, held, settings)
        scale = here.scale
        low, high = (corner * scale for corner in field.bounds)
        shape = transfer_deformation(
            here.uv_map, low, high, lambda places: places - field.displacement_at(places / scale) * scale
        )
        if chart := source.maps.find_chart(layer, t):
            shape = replace(shape, span=(chart.first, chart.last))
        report(Progress("dragging", 1, 1))
        details = {"frame": number, "points": np.round(rows, 2).tolist(), "radius": round(field.radius, 1)}
        note = f"the area within {field.radius:.0f} pixels of a point moves with it; --radius changes that"
        return EditorResult({}, (note,) if self.radius is None else (), details, {layer: shape})

    def _choose_field(
        self, here: LayerInFrame, start: Points, end: Points, held: HeldPoints, settings: DragSettings
    ) -> DragField:
        """Computes the displacement in pixels of the source, with the smallest radius that does not fold.

        Raises:
            UserError: a bad radius, or one with which the drags fold (exit 3).
        """
        lengths = np.linalg.norm(end - start, axis=1)
        longest = float(lengths.max())
        if self.radius is None:
            object_size = float(np.sqrt(here.visible_mask.sum() / here.scale.prod()))
            own = max(settings.radius_lengths * longest, settings.radius_object_share * object_size)
            radii = [factor * own for factor in settings.radius_factors]
        else:
            most = settings.max_radius_share * max(here.size)
            if not longest < self.radius <= most:
                raise bad_input(
                    f"--radius {self.radius:g} does not fit the drags",
                    why=f"the longest is {longest:.1f} pixels, and at most {most:.0f} make sense",
                    fix=f"--radius {settings.radius_lengths * longest:.0f}, or leave it out",
                )
            radii = [self.radius]
        for radius in radii:
            field = solve_drag_field(start, end, held, radius, settings)
            if field.min_area_change() >= settings.min_area_change:
                return field

        # All of them fold: the message says where, and how far the drags may go.
        best = 0.0  # the largest share of all drags that does not fold, by bisection
        for radius in radii:
            good, bad = 0.0, 1.0
            for _ in range(settings.halvings):
                share = (good + bad) / 2
                field = solve_drag_field(start, start + share * (end - start), held, radius, settings)
                if field.min_area_change() >= settings.min_area_change:
                    good = share
                else:
                    bad = share
            best = max(best, good)
        number = int(lengths.argmax())
        x, y = solve_drag_field(start, end, held, radii[-1], settings).find_worst_point()
        allowed = np.floor(10 * best * lengths[number]) / 10
        place = start[number] + (end - start)[number] * allowed / lengths[number]
        lengths_text = f"{allowed:g} of its {lengths[number]:.1f} pixels"
        shorter = f'--drag "{_format_point(start[number])}>{_format_point(place)}"'
        raise bad_input(
            f"the drags fold the layer {here.layer} near {x:.0f},{y:.0f}",
            why=f"with a radius of {radii[-1]:.0f} pixels the longest drag may be {lengths_text}",
            fix=shorter + (" and the others shorter alike" if len(start) > 1 else ""),
        )


def check_drags(start: Points, end: Points, held: HeldPoints, settings: DragSettings = DEFAULTS) -> None:
    """Refuses drags that move nothing or contradict each other.

    Args:
        start: start points of the drags, in pixels.
        end: their targets, in pixels.
        held: points to hold in place, in pixels.
        settings: distance below which two points count as the same.

    Raises:
        UserError: no drag, a drag that moves nothing, or two points at the same position (exit 3).
    """
    if not len(start):
        raise bad_input("no point is dragged", fix=EXAMPLE)
    for point, length in zip(start, np.linalg.norm(end - start, axis=1), strict=True):
        if length < POINTS.min_move_px:
            raise bad_input(
                f"the drag of {_format_point(point)} moves nothing",
                fix=f'--hold "{_format_point(point)}", or another place for it',
            )
    for points, what in ((start, "two drags start at"), (end, "two drags end at"), (held, "two points are held at")):
        for one, other in combinations(points, 2):
            if np.linalg.norm(one - other) < settings.min_distance_px:
                raise bad_input(f"{what} {_format_point(one)}", fix="leave one of them out")
    for point in held:
        for places, what in ((start, "dragged away"), (end, "the end of a drag")):
            if len(places) and np.linalg.norm(places - point, axis=1).min() < settings.min_distance_px:
                raise bad_input(
                    f"the point {_format_point(point)} is held, and {what} too", fix="leave one of them out"
                )


@dataclass(frozen=True)
class DragField:
    """Describes a backward displacement: the deformed picture at x shows the original at x minus the displacement.

    Attributes:
        centers: targets of the drags, and held points, in pixels.
        weights: weights of the radial functions around the centers, in pixels.
        radius: distance in pixels beyond which the functions are 0.
        grid_side: number of points along a side of the grid that is searched for folds.
    """

    centers: Float[np.ndarray, "n 2"]
    weights: Float[np.ndarray, "n 2"]
    radius: float
    grid_side: int = DEFAULTS.grid_side

    @property
    def bounds(self) -> tuple[Float[np.ndarray, "2"], Float[np.ndarray, "2"]]:
        """The upper left and lower right corners of the area that moves, with a margin, in pixels."""
        margin = 1.02 * self.radius + 1
        return self.centers.min(axis=0) - margin, self.centers.max(axis=0) + margin

    def displacement_at(self, points: Points) -> Points:
        """Computes the displacement in pixels at points."""
        total = np.zeros_like(points)
        for center, weight in zip(self.centers, self.weights, strict=True):
            total = total + _evaluate_wendland(np.linalg.norm(points - center, axis=1) / self.radius)[:, None] * weight
        return total

    def min_area_change(self) -> float:
        """Computes the smallest factor by which a small area shrinks, or the inverse of the largest growth."""
        areas = self._compute_areas()
        return float(min(areas.min(), 1 / max(areas.max(), 1e-9)))

    def find_worst_point(self) -> Float[np.ndarray, "2"]:
        """Finds the point where the area changes most."""
        areas = self._compute_areas()
        return self._make_grid()[np.argmin(np.minimum(areas, 1 / np.maximum(areas, 1e-9)))]

    def _make_grid(self) -> Points:
        low, high = self.bounds
        x, y = (np.linspace(low[axis], high[axis], self.grid_side) for axis in (0, 1))
        return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)

    def _compute_areas(self) -> Float[np.ndarray, " m"]:
        """Computes the ratio of areas, source to target, of small squares; it is negative where the field folds."""
        points = self._make_grid()
        slope = np.zeros((len(points), 2, 2))
        for center, weight in zip(self.centers, self.weights, strict=True):
            away = (points - center) / self.radius
            r = np.linalg.norm(away, axis=1)
            # d phi / dr = -20 r (1 - r)^3, along `away` / r
            along = (-20 * np.maximum(0, 1 - r) ** 3)[:, None] * away / self.radius
            slope += weight[:, None] * along[:, None, :]
        return (1 - slope[:, 0, 0]) * (1 - slope[:, 1, 1]) - slope[:, 0, 1] * slope[:, 1, 0]


def solve_drag_field(
    start: Points, end: Points, held: HeldPoints, radius: float, settings: DragSettings = DEFAULTS
) -> DragField:
    """Computes the displacement that moves points and holds others in place.

    Args:
        start: start points, in pixels.
        end: their targets, in pixels.
        held: points to hold in place, in pixels.
        radius: distance in pixels beyond which nothing moves.
        settings: the grid that is searched for folds.

    Example:
        >>> start, end, held = np.array([[50.0, 50.0]]), np.array([[60.0, 50.0]]), np.zeros((0, 2))
        >>> field = solve_drag_field(start, end, held, radius=40.0)
        >>> field.displacement_at(np.array([[60.0, 50.0], [110.0, 50.0]])).tolist()
        [[10.0, 0.0], [0.0, 0.0]]
    """
    centers = np.concatenate([end, held])
    distances = np.linalg.norm(centers[:, None] - centers[None], axis=-1) / radius
    values = np.concatenate([end - start, np.zeros_like(held)])
    return DragField(centers, np.linalg.solve(_evaluate_wendland(distances), values), radius, settings.grid_side)


def _evaluate_wendland(r: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    return np.maximum(0, 1 - r) ** 4 * (4 * r + 1)


def _format_point(point: Float[np.ndarray, "2"]) -> str:
    return f"{point[0]:.4g},{point[1]:.4g}"
