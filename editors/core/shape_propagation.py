"""Propagates the deformation of one chart to the other charts, so that one drag or shape deforms the entire clip.

A deformed chart shows at uv what it showed at uv - d(uv). Both points are found on the plane of the next chart, by the
frames in which the charts meet (`chart_handover.py`): their difference there is the displacement of that chart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from editors.core.chart_handover import ChartStep, meet_charts, name_series, order_steps
from neural_fields.atlas.inverse_uv import solve_positions
from neural_fields.atlas.layer_sight import sample_pixels
from neural_fields.atlas.uv_extrapolation import DEFAULTS as EXTRAPOLATION
from neural_fields.core import array_coords
from neural_fields.core.box import Box
from neural_fields.edits.shape import Deformation
from neural_fields.imaging.push_pull import pull_push
from neural_fields.open_runs.planar_run import PlanarRun


@dataclass(frozen=True)
class ShapeCarryingSettings:
    """Settings of carrying deformations from chart to chart."""

    outline_points: int = 65  # along a side of a deformation, to find where the next chart shows it
    margin_texels: int = 3  # around that place, of the result
    flow_sigma_px: float = 3.0  # blur of the flow between frames, whose noise would shake the outlines of objects
    min_known_share: float = 0.2  # of a deformation; of less, nothing is carried


DEFAULTS = ShapeCarryingSettings()


def carry_shapes_to_charts(
    run: PlanarRun, shapes: Mapping[str, Deformation], settings: ShapeCarryingSettings = DEFAULTS
) -> tuple[dict[str, tuple[Deformation, ...]], list[str]]:
    """Propagates deformations to all charts of their series.

    Args:
        run: the open run.
        shapes: deformations by layer; those of a chart have its span.
        settings: limits of the propagation.

    Returns:
        The deformations for other charts, by layer, and notes for the user.
    """
    carried: dict[str, tuple[Deformation, ...]] = {}
    notes: list[str] = []
    for series in run.maps.charts:
        known = {
            index: shapes[chart.layer]
            for index, chart in enumerate(series)
            if chart.layer in shapes and shapes[chart.layer].span == (chart.first, chart.last)
        }
        if not known:
            continue
        first = set(known)
        for step in order_steps(series, [index in first for index in range(len(series))]):
            start, end = series.index(step.start), series.index(step.end)
            found = _carry_shape(run, known[start], step, settings) if start in known else None
            if found is not None:
                known[end] = found
                carried[step.end.layer] = (*carried.get(step.end.layer, ()), found)
        if len(known) > len(first):
            count = len(known) - len(first)
            notes.append(f"propagated to {count} more of the {len(series)} charts of {name_series(series)}")
        if len(known) < len(series):
            count = len(series) - len(known)
            notes.append(f"{count} of the {len(series)} charts of {name_series(series)} do not show it")
    return carried, notes


def _carry_shape(
    run: PlanarRun, shape: Deformation, step: ChartStep, settings: ShapeCarryingSettings
) -> Deformation | None:
    """Finds the same deformation on the next chart; None: that shows nothing of it."""
    handover = meet_charts(run, step)
    if handover is None:
        return None
    start, end = handover.start, handover.end
    there, back = (cv2.GaussianBlur(flow, (0, 0), settings.flow_sigma_px) for flow in (handover.there, handover.back))

    def find_on_end(pixels: np.ndarray) -> np.ndarray:
        return end.uv_map.sample_uv(pixels + sample_pixels(there, pixels))

    # The part of the next chart that moves.
    grid = array_coords.texel_centers(shape.box, settings.outline_points, settings.outline_points).reshape(-1, 2)
    grid = grid[np.abs(shape.displacement_at(grid)).max(axis=1) > 0]
    if not len(grid):
        return None
    pixels, error = solve_positions(start.uv_map, grid, start.is_seen)
    if not (error < EXTRAPOLATION.max_error_px).any():
        return None
    uv = find_on_end(pixels[error < EXTRAPOLATION.max_error_px])
    texels = max(shape.field.shape)
    low, high = uv.min(axis=0), uv.max(axis=0)
    texel = float((high - low).max()) / texels
    size = np.ceil((high - low) / texel).astype(int) + 2 * settings.margin_texels
    low, high = low - settings.margin_texels * texel, low + (size - settings.margin_texels) * texel
    box = Box(*(float(value) for value in (*low, *high)))
    width, height = size.tolist()

    # Where its texels lie on the first chart, and where that shows them from.
    uv = array_coords.texel_centers(box, width, height).reshape(-1, 2).astype(np.float32)
    pixels, error = solve_positions(end.uv_map, uv, end.is_seen)
    is_known = (error < EXTRAPOLATION.max_error_px) & (sample_pixels(handover.is_known[..., None], pixels)[:, 0] > 0.5)
    pixels = pixels + sample_pixels(back, pixels)
    before = start.uv_map.sample_uv(pixels)
    moves = shape.displacement_at(before)
    moved = np.abs(moves).max(axis=1) > 0
    sources, error = solve_positions(start.uv_map, before[moved] - moves[moved], start.is_seen)
    is_known[moved] &= error < EXTRAPOLATION.max_error_px
    if not moved.any() or is_known[moved].mean() < settings.min_known_share:
        return None
    field = np.zeros((height * width, 2), np.float32)
    field[moved] = find_on_end(pixels[moved]) - find_on_end(sources)
    field = field.reshape(height, width, 2)
    if not is_known.all():
        field = pull_push(field, is_known.reshape(height, width))
    field[[0, -1]] = field[:, [0, -1]] = 0
    span = (step.end.first, step.end.last)
    return Deformation(np.ascontiguousarray(np.moveaxis(field, -1, 0), np.float32), box, span)
