"""Propagates paint from one chart of a canonical picture to the other charts, so that one edit covers the entire clip.

If a layer or a clip has several charts (`neural_fields/atlas/chart.py`), a point of one chart is found on the chart
before (`chart_handover.py`), and so in the picture that was painted. So each chart gets a map into the picture itself,
which frames look up once: its pixels are never resampled from chart to chart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from editors.core.chart_handover import ChartStep, Handover, align_textures, meet_charts, name_series, order_steps
from neural_fields.atlas.chart import Chart
from neural_fields.atlas.inverse_uv import solve_positions
from neural_fields.atlas.layer_sight import sample_pixels
from neural_fields.atlas.placed_picture import Paint, PicturePatch, PlacedPicture
from neural_fields.atlas.uv_extrapolation import DEFAULTS as EXTRAPOLATION
from neural_fields.core.box import Box
from neural_fields.open_runs.planar_run import PlanarRun
from neural_fields.tracking.points import DEFAULTS as TRACKING


@dataclass(frozen=True)
class ChartCarryingSettings:
    """Settings of carrying paint from chart to chart."""

    outline_points: int = 33  # along a side of a patch, to find where the next chart shows it
    margin_px: float = 16.0  # pixels of the maps around that place
    max_knots: int = 40_000  # of a patch; they are a pixel of the maps apart, if that is fewer


DEFAULTS = ChartCarryingSettings()


def carry_to_charts(
    run: PlanarRun, overlays: Mapping[str, Paint], settings: ChartCarryingSettings = DEFAULTS
) -> tuple[dict[str, Paint], list[str]]:
    """Propagates the paint on one chart to all charts of its series.

    Charts that were painted on themselves stay unchanged.

    Args:
        run: the open run.
        overlays: painted overlays and placed pictures, by layer.
        settings: limits of the propagation.

    Returns:
        The paint of all charts, by layer, and notes for the user.
    """
    result: dict[str, Paint] = dict(overlays)
    notes: list[str] = []
    for series in run.maps.charts:
        painted = [chart.layer in result and _shows_paint(result[chart.layer], chart) for chart in series]
        if not any(painted) or all(painted):
            continue
        own = {
            layer: paint if isinstance(paint, PlacedPicture) else PlacedPicture.from_painted_part(paint)
            for layer, paint in result.items()
            if layer in {chart.layer for chart in series}
        }
        # The paint of each chart: at first of those that were painted on, then of those that it is carried to.
        known = {index: own[series[index].layer] for index in range(len(series)) if painted[index]}
        short = 0
        for step in order_steps(series, painted):
            start, end = series.index(step.start), series.index(step.end)
            patch = _carry_patch(run, known[start], step, settings) if start in known else None
            if patch is None:
                short += 1
                continue
            known[end] = PlacedPicture(known[start].rgba, (patch,), known[start].notes)
        for layer in {series[index].layer for index in known if not painted[index]}:
            carried = [known[i] for i in known if series[i].layer == layer and not painted[i]]
            before = own[layer].patches if layer in own else ()
            patches = (*before, *(patch for one in carried for patch in one.patches))
            frames = own[layer].frames if layer in own else ()
            result[layer] = PlacedPicture(carried[0].rgba, patches, carried[0].notes, frames)
        reached = len(known) - sum(painted)
        if reached:
            notes.append(f"propagated to {reached} more of the {len(series)} charts of {name_series(series)}")
        if short:
            notes.append(
                f"{short} parts of {name_series(series)} show nothing of it where they meet the others: "
                "paint there too if it belongs there"
            )
    return result, notes


def _shows_paint(paint: Paint, chart: Chart) -> bool:
    """Returns whether paint lies in a chart."""
    if isinstance(paint, PlacedPicture):
        return any(_intersect(patch.box, chart.box) is not None for patch in paint.patches)
    height, width = paint.rgba.shape[:2]
    box, own = paint.box, chart.box
    left, right = (round((u - box.u0) / box.width * width) for u in (own.u0, own.u1))
    top, bottom = (round((v - box.v0) / box.height * height) for v in (own.v0, own.v1))
    return bool((paint.rgba[max(0, top) : max(0, bottom), max(0, left) : max(0, right), 3] > 0).any())


def _intersect(one: Box, other: Box) -> Box | None:
    """Returns what two boxes share; None: no area."""
    box = Box(max(one.u0, other.u0), max(one.v0, other.v0), min(one.u1, other.u1), min(one.v1, other.v1))
    return box if min(box.width, box.height) > 0 else None


def _carry_patch(
    run: PlanarRun, placed: PlacedPicture, step: ChartStep, settings: ChartCarryingSettings
) -> PicturePatch | None:
    """Finds where points of a chart lie in the picture that the chart before it shows; None: it shows none of it."""
    handover = meet_charts(run, step)
    there = None if handover is None else _find_area(placed, step, handover, settings)
    if handover is None or there is None:
        return None
    start, end = handover.start, handover.end
    area, pixel = there
    height, width = end.is_seen.shape

    # Knots a pixel apart; each is found in the second frame, from there in the first, on its plane, in the picture.
    sides = np.array([area.width, area.height]) / pixel
    count = np.maximum(2, np.ceil(sides * min(1.0, (settings.max_knots / sides.prod()) ** 0.5)).astype(int) + 1)
    u, v = np.linspace(area.u0, area.u1, count[0]), np.linspace(area.v0, area.v1, count[1])
    uv = np.stack(np.meshgrid(u, v), axis=-1).reshape(-1, 2)
    pixels, error = solve_positions(end.uv_map, uv, end.is_seen)
    moved = pixels + sample_pixels(handover.back, pixels)
    before = start.uv_map.sample_uv(moved).astype(np.float32)
    shape = (int(count[1]), int(count[0]))
    before = align_textures(run, step, uv.reshape(*shape, 2), before.reshape(*shape, 2)).reshape(-1, 2)
    box = step.start.box
    inside = ((before >= [box.u0, box.v0]) & (before <= [box.u1, box.v1])).all(axis=1)
    beyond = np.abs(pixels - np.clip(pixels, 0, [width, height])).max(axis=1)
    is_known = sample_pixels(handover.is_known[..., None], pixels)[:, 0] > 0.5
    shown = inside & is_known & (error < EXTRAPOLATION.max_error_px)
    shown &= beyond <= TRACKING.max_flow_gap * max(width, height)
    found, light = (values.reshape(-1, 3) for values in _look_into_patches(placed, before.reshape(*shape, 2)))
    places = np.column_stack([found[:, :2], found[:, 2] * shown]).astype(np.float32)
    x, y = np.floor(places[:, :2]).astype(int).T
    on = (x >= 0) & (y >= 0) & (x < placed.size[0]) & (y < placed.size[1]) & (places[:, 2] > 0)
    if not on.any() or not (placed.rgba[y[on], x[on], 3] > 0).any():
        return None
    if start.light is not None and end.light is not None:
        light = light + (sample_pixels(start.light, moved) - sample_pixels(end.light, pixels))
    has_light = bool(np.abs(light).max() > 1e-4)
    return PicturePatch(
        area, places.reshape(*shape, 3), light.astype(np.float32).reshape(*shape, 3) if has_light else None
    )


def _find_area(
    placed: PlacedPicture,
    step: ChartStep,
    handover: Handover,
    settings: ChartCarryingSettings,
) -> tuple[Box, Float[np.ndarray, "2"]] | None:
    """Finds the part of the second chart that shows the picture, and the size of a pixel there in uv units.

    Args:
        placed: the picture on the first chart.
        step: from chart to chart.
        handover: how the frames in which they meet are related.
        settings: points, and the margin.
    """
    low, high = np.full(2, np.inf), np.full(2, -np.inf)
    share = np.linspace(0, 1, settings.outline_points)
    for patch in placed.patches:
        part = _intersect(patch.box, step.start.box)
        if part is None:
            continue
        grid = np.stack(np.meshgrid(part.u0 + share * part.width, part.v0 + share * part.height), -1)
        places = patch.find_places(grid.astype(np.float32))
        spacing = np.array(placed.size) / (settings.outline_points - 1)
        inside = ((places[..., :2] >= -spacing) & (places[..., :2] <= placed.size + spacing)).all(-1)
        if not inside.any():
            continue
        pixels, _ = solve_positions(handover.start.uv_map, grid[inside], handover.start.is_seen)
        uv = handover.end.uv_map.sample_uv(pixels + sample_pixels(handover.there, pixels))
        low, high = np.minimum(low, uv.min(axis=0)), np.maximum(high, uv.max(axis=0))
    if not np.isfinite(low).all():
        return None
    pixel = np.linalg.norm(handover.end.uv_map.jacobian.reshape(-1, 2, 2), axis=-1).mean(axis=0)
    margin = settings.margin_px * pixel
    area = _intersect(Box(*(float(value) for value in (*(low - margin), *(high + margin)))), step.end.box)
    return None if area is None else (area, pixel)


def _look_into_patches(
    placed: PlacedPicture, uv: Float[np.ndarray, "rows columns 2"]
) -> tuple[Float[np.ndarray, "rows columns 3"], Float[np.ndarray, "rows columns 3"]]:
    """Finds places in a picture, and logarithms of its light, by the patch that points lie in, or lie nearest to."""
    places = light = np.zeros((*uv.shape[:2], 3), np.float32)
    nearest = np.full(uv.shape[:2], np.inf)
    for patch in placed.patches:
        low, high = np.array([patch.box.u0, patch.box.v0]), np.array([patch.box.u1, patch.box.v1])
        distance = np.abs(uv - uv.clip(low, high)).max(axis=-1)
        here = (distance < nearest)[..., None]
        nearest = np.minimum(nearest, distance)
        places = np.where(here, patch.find_places(uv), places)
        factor = patch.find_light(uv)
        light = np.where(here, 0 if factor is None else np.log(factor[..., :3]), light)
    return places, light
