"""Shape edits: points of an object are moved in one frame, and the object is deformed in all of them.

Between the points the deformation is a thin-plate spline (Bookstein, "Principal Warps", PAMI 1989); beyond the object
it fades out. It is carried to the canonical plane by the uv map of the frame, and from there to every frame by theirs,
as in Lee et al., "Shape-aware Text-driven Layered Video Editing" (CVPR 2023, 3.2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
from jaxtyping import Bool, Float

from editors.base import EditorResult, Report, Source
from editors.shape_points import STILL, Points, check_spread, parse_pairs, read_flow, read_pairs
from neural_fields.config_flags import Repeated
from neural_fields.coords import Box
from neural_fields.errors import bad_input
from neural_fields.extended_map import ExtendedMap
from neural_fields.lookup import scattered
from neural_fields.output import source_facts
from neural_fields.reshaping import SEEN, Shape, frame_map

SIDE = 200  # of the grid on which the spline is worked out
TEXELS = 320  # along the longer side of a stored displacement
FADES = (3.0, 6.0, 12.0)  # the deformation fades out over so many times its size
LOOSE = 2.0  # of the spline for flow, whose vectors are noisy


@dataclass(frozen=True, kw_only=True)
class ShapeEdit:
    """Move points of an object in one frame; the object is deformed with them in every frame."""

    name: ClassVar[str] = "shape"

    frame: int | None = None
    """Number of the frame in the source that the points are seen in, 0 is the first (default: the middle one)."""
    pairs: Repeated = ()
    """A point and where it shall be, in pixels of that frame: "x,y>x,y". The same twice holds a point. Repeatable."""
    pairs_file: Path | None = None
    """A CSV file with four numbers a line: x, y, and the x, y where it shall be."""
    flow: Path | None = None
    """Instead of points: a .flo or .npy file of that frame's size that says by how much each pixel shall move."""

    def __call__(self, source: Source, report: Report) -> EditorResult:
        """The deformation of one layer.

        Raises:
            UserError: no points or not enough of them, points that are not on the layer, a deformation that folds.
        """
        layer = only_layer(source)
        number, t = run_frame(source, self.frame)
        report("deforming", 0, 1)
        start, end, loose = self.points(source, layer, t)
        shape = shape_of(source, layer, t, start, end, loose)
        report("deforming", 1, 1)
        facts = {"frame": number, "points": np.round(np.concatenate([start, end], axis=1), 2).tolist()}
        return EditorResult({}, tuple(parts_note(source, layer)), facts, {layer: shape})

    def points(self, source: Source, layer: str, t: int) -> tuple[Points, Points, float]:
        """Points in pixels of the source, where they shall be, and how loosely the spline may hold them.

        Raises:
            UserError: nothing or several things given, or what cannot be read (exit 3).
        """
        if sum([bool(self.pairs), self.pairs_file is not None, self.flow is not None]) != 1:
            raise bad_input(
                "a shape edit takes one of --pairs, --pairs-file and --flow",
                fix='--pairs "120,80>140,80" --pairs "200,80>200,80" --pairs "160,140>160,140"',
            )
        if self.flow is not None:
            facts, _ = source_facts(source.run)
            size = (facts.width, facts.height)
            weight = source.maps.layer_weight(t, source.maps.layers.index(layer), size)
            rows = read_flow(self.flow, size, weight >= SEEN)
        else:
            rows = parse_pairs(self.pairs) if self.pairs_file is None else read_pairs(self.pairs_file)
        return rows[:, :2], rows[:, 2:], 0.0 if self.flow is None else LOOSE


def shape_of(source: Source, layer: str, t: int, start: Points, end: Points, loose: float = 0.0) -> Shape:
    """The deformation of a layer that takes points of frame `t` to where they shall be.

    Args:
        t: frame of the run.
        start, end: pixels of the source.
        loose: smoothing of the spline; 0 goes through all points.

    Raises:
        UserError: points that do not tell a deformation, or tell one that folds (exit 3).
    """
    here = layer_in_frame(source, layer, t)
    check_places(here, start, np.linalg.norm(end - start, axis=1) >= STILL)
    check_spread(start, end)
    try:
        return deform(here.found, here.seen, start * here.scale, end * here.scale, loose)
    except Folded as fold:
        x, y = fold.place / here.scale
        raise bad_input(
            f"the deformation folds the layer {layer} near {x:.0f},{y:.0f}",
            why="points next to each other there go past one another",
            fix="move the points there less, or take one of them away",
        ) from None


@dataclass(frozen=True)
class LayerInFrame:
    """Where a frame shows a layer.

    Attributes:
        layer: its name.
        found: uv at the size of the fit, also beyond what is seen.
        seen: the pixels of the fit that show it.
        size: (width, height) of a frame of the source.
        scale: pixels of the fit in one of the source, along x and y.
    """

    layer: str
    found: ExtendedMap
    seen: Bool[np.ndarray, "height width"]
    size: tuple[int, int]
    scale: Float[np.ndarray, "2"]


def layer_in_frame(source: Source, layer: str, t: int) -> LayerInFrame:
    """Where frame `t` of the run shows a layer.

    Raises:
        UserError: too little of it is seen (exit 3).
    """
    facts, _ = source_facts(source.run)
    index, maps, size = source.maps.layers.index(layer), source.maps, (facts.width, facts.height)
    found = frame_map(maps, t, index)
    if found is None:
        raise bad_input(f"the layer {layer} is not seen in that frame", fix="--frame with one that shows it")
    return LayerInFrame(layer, found, maps.layer_weight_small(t, index) >= SEEN, size, np.array(maps.size) / size)


class Folded(Exception):
    """A deformation turns a part of the object over."""

    def __init__(self, place: Float[np.ndarray, "2"]) -> None:
        super().__init__(f"near {place}")
        self.place = place


def deform(
    found: ExtendedMap, seen: Bool[np.ndarray, "height width"], start: Points, end: Points, loose: float = 0.0
) -> Shape:
    """The deformation of the canonical plane that takes points of a frame to where they shall be.

    Args:
        found: uv of the layer in that frame.
        seen: where the frame shows the layer.
        start, end: pixels of the frame at that size.

    Raises:
        Folded: a part of the object would be turned over.
    """
    corner, step, backward = _on_grid(seen, start, end, loose)
    low = corner - step / 2
    high = low + step * np.array(backward.shape[1::-1])

    def source_of(points: Points) -> Points:
        x, y = ((points - corner) / step).T
        moved = scattered(backward, x.astype(np.float32), y.astype(np.float32))
        inside = ((points > low) & (points < high)).all(axis=1, keepdims=True)
        return points - np.where(inside, moved, 0)

    return carried(found, low, high, source_of)


def carried(
    found: ExtendedMap,
    low: Float[np.ndarray, "2"],
    high: Float[np.ndarray, "2"],
    source_of: Callable[[Points], Points],
) -> Shape:
    """The deformation of the canonical plane that is a given one in a frame.

    Args:
        found: uv of the layer in that frame.
        low, high: corners of a rectangle of the frame, in pixels of it, beyond which nothing moves.
        source_of: where what a position shall show lay before.
    """
    rim = np.stack(np.meshgrid(np.linspace(low[0], high[0], 33), np.linspace(low[1], high[1], 33)), -1).reshape(-1, 2)
    uv = found.at(rim)
    box = Box(*(float(v) for v in (*uv.min(axis=0), *uv.max(axis=0))))
    texel = max(box.width, box.height) / TEXELS
    width, height = (max(3, round(side / texel)) for side in (box.width, box.height))
    u = box.u0 + (np.arange(width) + 0.5) * box.width / width
    v = box.v0 + (np.arange(height) + 0.5) * box.height / height
    wanted = np.stack(np.meshgrid(u, v), axis=-1).reshape(-1, 2)
    back = np.linalg.lstsq(np.column_stack([uv, np.ones(len(uv))]), rim, rcond=None)[0]
    places, _ = found.solve(wanted, np.column_stack([wanted, np.ones(len(wanted))]) @ back)
    # What is asked for is where the pixel's source lies on the plane, not where its first-order neighbour does.
    field = (found.at(places) - found.at(source_of(places))).reshape(height, width, 2)
    field[[0, -1]] = field[:, [0, -1]] = 0
    return Shape(np.ascontiguousarray(np.moveaxis(field, -1, 0), np.float32), box)


def _on_grid(
    seen: Bool[np.ndarray, "height width"], start: Points, end: Points, loose: float
) -> tuple[Float[np.ndarray, "2"], float, Float[np.ndarray, "rows columns 2"]]:
    """Backward displacement in pixels on a grid around the object, zero at its rim: first position, step, values."""
    from scipy.interpolate import RBFInterpolator

    spline = RBFInterpolator(end, end - start, kernel="thin_plate_spline", smoothing=loose * len(end), degree=1)
    y, x = np.nonzero(seen)
    object_points = np.stack([x, y], axis=-1) + 0.5
    largest = float(np.linalg.norm(end - start, axis=1).max())
    around = np.concatenate([object_points, object_points + (end - start).mean(axis=0), end])
    extent = float(np.ptp(object_points, axis=0).max())
    for fade in FADES:
        margin = fade * largest + 0.5 * extent
        low, high = around.min(axis=0) - margin, around.max(axis=0) + margin
        step = max(0.5, float((high - low).max()) / SIDE)
        columns, rows = np.ceil((high - low) / step).astype(int) + 1
        grid = low + step * np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1)
        moved = spline(grid.reshape(-1, 2)).reshape(rows, columns, 2)
        before, after = (_on_object(seen, places) for places in (grid, grid - moved))
        _check_folds(grid, moved, after)
        window = _window(before | after, step, fade * largest)
        backward = moved * window[..., None]
        backward[[0, -1]] = backward[:, [0, -1]] = 0
        stray = _on_object(seen, grid - backward) & ~after
        if not stray.any():
            return low, step, backward.astype(np.float32)
    raise Folded(grid[stray].mean(axis=0))


def _window(core: Bool[np.ndarray, "rows columns"], step: float, fade: float) -> Float[np.ndarray, "rows columns"]:
    """One on the convex hull of some places, falling to zero over `fade` pixels around it."""
    rows, columns = np.nonzero(core)
    hull = cv2.convexHull(np.stack([columns, rows], axis=-1).astype(np.int32))
    inside = cv2.fillConvexPoly(np.zeros(core.shape, np.uint8), hull, 1)
    distance = step * np.maximum(0, cv2.distanceTransform(1 - inside, cv2.DIST_L2, 5) - 2)
    part = np.clip(distance / max(fade, step), 0, 1)
    return 1 - part**2 * (3 - 2 * part)


def _check_folds(
    grid: Float[np.ndarray, "rows columns 2"],
    moved: Float[np.ndarray, "rows columns 2"],
    after: Bool[np.ndarray, "rows columns"],
) -> None:
    """Refuses a deformation that turns a part of the object over, or leaves nothing of it, or blows it up."""
    step = grid[0, 1, 0] - grid[0, 0, 0]
    places = grid - moved
    down, right = (np.gradient(places, step, axis=axis) for axis in (0, 1))
    area = right[..., 0] * down[..., 1] - right[..., 1] * down[..., 0]
    near = cv2.dilate(after.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    wrong = near & (area <= 0)
    rim = np.ones_like(after)
    rim[1:-1, 1:-1] = False
    wrong |= rim & after
    if wrong.any() or not after.any():
        raise Folded(grid[wrong if wrong.any() else rim].mean(axis=0))


def _on_object(seen: Bool[np.ndarray, "height width"], places: Float[np.ndarray, "rows columns 2"]) -> np.ndarray:
    """Whether positions in pixels lie on what is seen of the object."""
    height, width = seen.shape
    column, row = (np.floor(places[..., axis]).astype(int) for axis in (0, 1))
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return inside & seen[row.clip(0, height - 1), column.clip(0, width - 1)]


def only_layer(source: Source) -> str:
    """The one layer to deform.

    Raises:
        UserError: several layers, or a mask, which a deformation has no use for (exit 3).
    """
    if len(source.layers) > 1:
        raise bad_input("one layer is deformed at a time", fix=f"--layer {source.layers[0]}")
    if source.mask is not None:
        raise bad_input("a shape edit takes no mask", why="the points say what moves", fix="leave --mask out")
    return source.layers[0]


def run_frame(source: Source, frame: int | None) -> tuple[int, int]:
    """The number of a frame in the source, and in the run; by default of the middle one.

    Raises:
        UserError: a frame that the run was not fitted to (exit 3).
    """
    _, chosen = source_facts(source.run)
    if frame is None:
        frame = chosen[len(chosen) // 2]
    if frame not in chosen:
        raise bad_input(
            f"frame {frame} is not part of this run",
            why=f"it was fitted to frames {chosen[0]} to {chosen[-1]}",
            fix=f"--frame {min(chosen, key=lambda k: abs(k - frame))}",
        )
    return frame, chosen.index(frame)


def check_places(here: LayerInFrame, points: Points, moving: Bool[np.ndarray, " n"]) -> None:
    """Refuses points, in pixels of the source, that are not in the frame, and those that move and are not on the layer.

    Raises:
        UserError: names the point, and the nearest one that would do (exit 3).
    """
    near = cv2.dilate(here.seen.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0  # nobody points more exactly
    rows, columns = np.nonzero(here.seen)
    own, (width, height) = (np.stack([columns, rows], axis=-1) + 0.5) / here.scale, here.size
    for point, moves in zip(points, moving, strict=True):
        shown = f"{point[0]:g},{point[1]:g}"
        if not ((point >= 0) & (point <= here.size)).all():
            raise bad_input(f"the point {shown} is outside the frame", why=f"a frame has {width}x{height} pixels")
        if moves and not _on_object(near, (point * here.scale)[None, None]).all():
            x, y = own[np.argmin(((own - point) ** 2).sum(axis=1))]
            raise bad_input(
                f"the point {shown} is not on the layer {here.layer}",
                why=f"the nearest point on it is {x:.0f},{y:.0f}",
                fix="take that, or --layer with another",
            )


def parts_note(source: Source, layer: str) -> list[str]:
    """What to tell of a layer that the clip has in several parts."""
    parts = next((series for series in source.maps.charts if any(chart.layer == layer for chart in series)), ())
    if len(parts) < 2:
        return []
    return [f"{layer} is one of {len(parts)} parts of the clip; only the frames that show it are deformed"]
