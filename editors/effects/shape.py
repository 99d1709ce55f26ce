"""`shape`: deforms an object in all frames; the user moves points of the object in one frame.

Between the points the deformation is a thin-plate spline (Bookstein, "Principal Warps", PAMI 1989); beyond the object
it fades out. The uv map of that frame transfers it to the canonical plane, and the maps of the other frames transfer it
to them, as in Lee et al., "Shape-aware Text-driven Layered Video Editing" (CVPR 2023, 3.2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
from jaxtyping import Bool, Float

from editors.core.editor import EditorResult, PlanarEditor
from editors.core.source import EditSource
from editors.effects.shape_points import DEFAULTS as POINTS
from editors.effects.shape_points import (
    PointPairSettings,
    Points,
    check_spread,
    parse_point_pairs,
    read_flow_pairs,
    read_point_pairs,
)
from editors.options.effects import ShapeOptions
from neural_fields.atlas.uv_extrapolation import DEFAULTS as EXTRAPOLATION
from neural_fields.atlas.uv_extrapolation import ExtrapolatedMap, extrapolate_frame_map
from neural_fields.core.box import Box
from neural_fields.core.errors import bad_input
from neural_fields.core.progress import Progress, ProgressReporter
from neural_fields.edits.shape import Deformation
from neural_fields.imaging.resampling import sample_bilinear


@dataclass(frozen=True)
class ShapeEditSettings:
    """Settings of the deformation between and beyond the points that are moved."""

    grid_side: int = 200  # intervals along the longer side of the grid on which the spline is evaluated
    texels: int = 320  # along the longer side of a stored displacement
    fade_lengths: tuple[float, ...] = (3.0, 6.0, 12.0)  # widths of the fade-out to try, in longest moves of a point
    margin_share: float = 0.5  # of the object's size: margin of the grid around the object, besides the fade-out
    flow_smoothing: float = 2.0  # of the spline for flow, whose vectors are noisy
    points: PointPairSettings = POINTS


DEFAULTS = ShapeEditSettings()


@dataclass(frozen=True, kw_only=True)
class ShapeEdit(ShapeOptions, PlanarEditor):
    """Move points of an object in one frame; the object is deformed with them in every frame."""

    def edit(
        self, source: EditSource, report: ProgressReporter, settings: ShapeEditSettings = DEFAULTS
    ) -> EditorResult:
        """Makes the deformation of one layer.

        Args:
            source: the run, and the layer to deform.
            report: called with the progress.
            settings: resolution and fade-out of the deformation.

        Raises:
            UserError: too few points, points that are not on the layer, or a deformation that folds.
        """
        layer = require_one_layer(source)
        number, t = find_run_frame(source, self.frame)
        report(Progress("deforming", 0, 1))
        start, end, loose = self.read_points(source, layer, t, settings)
        shape = compute_deformation(source, layer, t, start, end, loose, settings)
        report(Progress("deforming", 1, 1))
        details = {"frame": number, "points": np.round(np.concatenate([start, end], axis=1), 2).tolist()}
        return EditorResult({}, (), details, {layer: shape})

    def read_points(
        self, source: EditSource, layer: str, t: int, settings: ShapeEditSettings = DEFAULTS
    ) -> tuple[Points, Points, float]:
        """Reads the points to move.

        Args:
            source: the run.
            layer: name of the layer that the points are on.
            t: index of the frame in the run.
            settings: number of points taken from a flow file, and the smoothing for them.

        Returns:
            Points in pixels of the source, their targets, and the smoothing of the spline.

        Raises:
            UserError: points from no source or from several, or a file that cannot be read (exit 3).
        """
        if sum([bool(self.pairs), self.pairs_file is not None, self.flow is not None]) != 1:
            raise bad_input(
                "a shape edit takes one of --pairs, --pairs-file and --flow",
                fix='--pairs "120,80>140,80" --pairs "200,80>200,80" --pairs "160,140>160,140"',
            )
        if self.flow is not None:
            size = source.run.source_size
            weight = source.maps.read_layer_weight(t, source.maps.layers.index(layer), size)
            rows = read_flow_pairs(self.flow, size, weight >= EXTRAPOLATION.min_map_weight, settings.points)
        else:
            rows = parse_point_pairs(self.pairs) if self.pairs_file is None else read_point_pairs(self.pairs_file)
        return rows[:, :2], rows[:, 2:], 0.0 if self.flow is None else settings.flow_smoothing


def compute_deformation(
    source: EditSource,
    layer: str,
    t: int,
    start: Points,
    end: Points,
    smoothing: float = 0.0,
    settings: ShapeEditSettings = DEFAULTS,
    on_object: bool = True,
) -> Deformation:
    """Computes the deformation of a layer that moves points of one frame.

    Args:
        source: the run.
        layer: name of the layer.
        t: index of the frame in the run.
        start: points (x, y) in pixels of the source.
        end: their targets, in pixels of the source.
        smoothing: smoothing of the spline; 0 interpolates all points.
        settings: requirements on the points, and resolution and fade-out of the deformation.
        on_object: whether the points must be on the layer.

    Raises:
        UserError: points that do not define a deformation, or define one that folds (exit 3).
    """
    here, chart = find_layer_in_frame(source, layer, t), source.maps.find_chart(layer, t)
    if on_object:
        check_point_positions(here, start, np.linalg.norm(end - start, axis=1) >= settings.points.min_move_px)
    check_spread(start, end, settings.points)
    try:
        shape = deform_by_points(
            here.uv_map, here.visible_mask, start * here.scale, end * here.scale, smoothing, settings
        )
        return replace(shape, span=(chart.first, chart.last)) if chart else shape
    except FoldError as fold:
        x, y = fold.position / here.scale
        raise bad_input(
            f"the deformation folds the layer {layer} near {x:.0f},{y:.0f}",
            why="points next to each other there go past one another",
            fix="move the points there less, or take one of them away",
        ) from None


@dataclass(frozen=True)
class LayerInFrame:
    """Describes where a frame shows a layer.

    Attributes:
        layer: name of the layer.
        uv_map: uv map at the training size, extrapolated beyond the visible part.
        visible_mask: the pixels at the training size that show the layer.
        size: (width, height) of a frame of the source, in pixels.
        scale: pixels at the training size per pixel of the source, along x and y.
    """

    layer: str
    uv_map: ExtrapolatedMap
    visible_mask: Bool[np.ndarray, "height width"]
    size: tuple[int, int]
    scale: Float[np.ndarray, "2"]


def find_layer_in_frame(source: EditSource, layer: str, t: int) -> LayerInFrame:
    """Finds where a frame of the run shows a layer.

    Args:
        source: the run.
        layer: name of the layer.
        t: index of the frame in the run.

    Raises:
        UserError: too little of the layer is visible (exit 3).
    """
    index, maps, size = source.maps.layers.index(layer), source.maps, source.run.source_size
    found = extrapolate_frame_map(maps, t, index)
    if found is None:
        raise bad_input(f"the layer {layer} is not visible in that frame", fix="--frame with one that shows it")
    seen = maps.read_layer_weight_small(t, index) >= EXTRAPOLATION.min_map_weight
    return LayerInFrame(layer, found, seen, size, np.array(maps.size) / size)


class FoldError(Exception):
    """Signals that a deformation folds the object; `position` is a pixel position in the fold."""

    def __init__(self, place: Float[np.ndarray, "2"]) -> None:
        super().__init__(f"near {place}")
        self.position = place


def deform_by_points(
    uv_map: ExtrapolatedMap,
    visible_mask: Bool[np.ndarray, "height width"],
    start: Points,
    end: Points,
    smoothing: float = 0.0,
    settings: ShapeEditSettings = DEFAULTS,
) -> Deformation:
    """Computes the deformation of the canonical plane that moves points of a frame.

    Args:
        uv_map: uv map of the layer in that frame.
        visible_mask: where the frame shows the layer.
        start: points (x, y) in pixels of the frame at the size of `visible_mask`.
        end: their targets, in the same pixels.
        smoothing: smoothing of the spline; 0 interpolates all points.
        settings: resolution and fade-out.

    Raises:
        FoldError: the deformation folds the object.
    """
    corner, step, backward = _displace_on_grid(visible_mask, start, end, smoothing, settings)
    low = corner - step / 2
    high = low + step * np.array(backward.shape[1::-1])

    def source_of(points: Points) -> Points:
        x, y = ((points - corner) / step).T
        moved = sample_bilinear(backward, x.astype(np.float32), y.astype(np.float32))
        inside = ((points > low) & (points < high)).all(axis=1, keepdims=True)
        return points - np.where(inside, moved, 0)

    return transfer_deformation(uv_map, low, high, source_of, settings.texels)


def transfer_deformation(
    uv_map: ExtrapolatedMap,
    low: Float[np.ndarray, "2"],
    high: Float[np.ndarray, "2"],
    source_of: Callable[[Points], Points],
    texels: int = DEFAULTS.texels,
) -> Deformation:
    """Transfers a deformation of a frame to the canonical plane.

    Args:
        uv_map: uv map of the layer in that frame.
        low: upper left corner (x, y), in pixels of the frame, of the rectangle beyond which nothing moves.
        high: its lower right corner.
        source_of: maps pixel positions of the deformed frame to the positions in the original frame that they show.
        texels: number of texels along the longer side of the result.
    """
    rim = np.stack(np.meshgrid(np.linspace(low[0], high[0], 33), np.linspace(low[1], high[1], 33)), -1).reshape(-1, 2)
    uv = uv_map.sample_uv(rim)
    box = Box(*(float(v) for v in (*uv.min(axis=0), *uv.max(axis=0))))
    texel = max(box.width, box.height) / texels
    width, height = (max(3, round(side / texel)) for side in (box.width, box.height))
    u = box.u0 + (np.arange(width) + 0.5) * box.width / width
    v = box.v0 + (np.arange(height) + 0.5) * box.height / height
    wanted = np.stack(np.meshgrid(u, v), axis=-1).reshape(-1, 2)
    back = np.linalg.lstsq(np.column_stack([uv, np.ones(len(uv))]), rim, rcond=None)[0]
    places, _ = uv_map.solve_positions(wanted, np.column_stack([wanted, np.ones(len(wanted))]) @ back)
    # The difference of the uv of a pixel and of its source, not its first-order approximation.
    field = (uv_map.sample_uv(places) - uv_map.sample_uv(source_of(places))).reshape(height, width, 2)
    field[[0, -1]] = field[:, [0, -1]] = 0
    return Deformation(np.ascontiguousarray(np.moveaxis(field, -1, 0), np.float32), box)


def _displace_on_grid(
    seen: Bool[np.ndarray, "height width"], start: Points, end: Points, loose: float, settings: ShapeEditSettings
) -> tuple[Float[np.ndarray, "2"], float, Float[np.ndarray, "rows columns 2"]]:
    """Computes the backward displacement in pixels on a grid around the object, zero at its rim.

    Returns:
        The first position of the grid and its step, in pixels, and the displacements.
    """
    from scipy.interpolate import RBFInterpolator

    spline = RBFInterpolator(end, end - start, kernel="thin_plate_spline", smoothing=loose * len(end), degree=1)
    y, x = np.nonzero(seen)
    object_points = np.stack([x, y], axis=-1) + 0.5
    largest = float(np.linalg.norm(end - start, axis=1).max())
    around = np.concatenate([object_points, object_points + (end - start).mean(axis=0), end])
    extent = float(np.ptp(object_points, axis=0).max())
    for lengths in settings.fade_lengths:
        fade = lengths * largest
        margin = fade + settings.margin_share * extent
        low, high = around.min(axis=0) - margin, around.max(axis=0) + margin
        step = max(0.5, float((high - low).max()) / settings.grid_side)
        columns, rows = np.ceil((high - low) / step).astype(int) + 1
        grid = low + step * np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1)
        moved = spline(grid.reshape(-1, 2)).reshape(rows, columns, 2)
        before, after = (_is_on_object(seen, places) for places in (grid, grid - moved))

        # Refuse a deformation that turns a part of the object over, or leaves nothing of it, or enlarges it too far.
        spacing = grid[0, 1, 0] - grid[0, 0, 0]
        down, right = (np.gradient(grid - moved, spacing, axis=axis) for axis in (0, 1))
        area = right[..., 0] * down[..., 1] - right[..., 1] * down[..., 0]
        near = cv2.dilate(after.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        wrong = near & (area <= 0)
        rim = np.ones_like(after)
        rim[1:-1, 1:-1] = False
        wrong |= rim & after
        if wrong.any() or not after.any():
            raise FoldError(grid[wrong if wrong.any() else rim].mean(axis=0))

        # A window: one on the convex hull of the object before and after, falling smoothly to zero around it.
        hull_rows, hull_columns = np.nonzero(before | after)
        hull = cv2.convexHull(np.stack([hull_columns, hull_rows], axis=-1).astype(np.int32))
        inside = cv2.fillConvexPoly(np.zeros(before.shape, np.uint8), hull, 1)
        distance = step * np.maximum(0, cv2.distanceTransform(1 - inside, cv2.DIST_L2, 5) - 2)
        part = np.clip(distance / max(fade, step), 0, 1)
        backward = moved * (1 - part**2 * (3 - 2 * part))[..., None]
        backward[[0, -1]] = backward[:, [0, -1]] = 0

        stray = _is_on_object(seen, grid - backward) & ~after
        if not stray.any():
            return low, step, backward.astype(np.float32)
    raise FoldError(grid[stray].mean(axis=0))


def _is_on_object(seen: Bool[np.ndarray, "height width"], places: Float[np.ndarray, "rows columns 2"]) -> np.ndarray:
    """Tells which positions in pixels are on the visible part of the object."""
    height, width = seen.shape
    column, row = (np.floor(places[..., axis]).astype(int) for axis in (0, 1))
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return inside & seen[row.clip(0, height - 1), column.clip(0, width - 1)]


def require_one_layer(source: EditSource) -> str:
    """Returns the name of the only layer to edit.

    Raises:
        UserError: several layers, or a mask, which a deformation does not use (exit 3).
    """
    if len(source.layers) > 1:
        raise bad_input("one layer is deformed at a time", fix=f"--layer {source.layers[0]}")
    if source.mask is not None:
        raise bad_input("a shape edit takes no mask", why="the points say what moves", fix="leave --mask out")
    return source.layers[0]


def find_run_frame(source: EditSource, frame: int | None) -> tuple[int, int]:
    """Finds a frame of the source in the run.

    Args:
        source: the run.
        frame: number of the frame in the source; None for the middle one of the run.

    Returns:
        The number of the frame in the source, and its index in the run.

    Raises:
        UserError: a frame that the run was not trained on (exit 3).
    """
    frame = source.run.frames[source.run.frame_count // 2] if frame is None else frame
    return frame, source.run.require_frame(frame)


def check_point_positions(here: LayerInFrame, points: Points, moving: Bool[np.ndarray, " n"]) -> None:
    """Refuses points outside of the frame, and moving points that are not on the layer.

    Args:
        here: the layer in the frame.
        points: points (x, y) in pixels of the source.
        moving: which of the points move.

    Raises:
        UserError: an invalid point (exit 3); the message names the nearest valid one.
    """
    near = cv2.dilate(here.visible_mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0  # nobody points more exactly
    rows, columns = np.nonzero(here.visible_mask)
    own, (width, height) = (np.stack([columns, rows], axis=-1) + 0.5) / here.scale, here.size
    for point, moves in zip(points, moving, strict=True):
        shown = f"{point[0]:g},{point[1]:g}"
        if not ((point >= 0) & (point <= here.size)).all():
            raise bad_input(f"the point {shown} is outside the frame", why=f"a frame has {width}x{height} pixels")
        if moves and not _is_on_object(near, (point * here.scale)[None, None]).all():
            x, y = own[np.argmin(((own - point) ** 2).sum(axis=1))]
            raise bad_input(
                f"the point {shown} is not on the layer {here.layer}",
                why=f"the nearest point on it is {x:.0f},{y:.0f}",
                fix="take that, or --layer with another",
            )
