"""Propagates paint from one chart of a canonical picture to the other charts, so that one edit covers the entire clip.

If a layer or a clip has several charts (`neural_fields/atlas/chart.py`), neighboring charts meet in time: a point of
one chart is found in the first frame that shows it, follows the optical flow into the last frame of the chart before,
and from there lies on that chart's plane, and in the picture that was painted. So each chart gets a map into the
picture itself, which frames look up once: its pixels are never resampled from chart to chart. Charts that overlap in
time share a frame and need no flow.

An object in front of the layer does not interrupt the propagation: the maps give the position of the layer behind it,
and the flow is extrapolated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from neural_fields.atlas.chart import Chart, choose_handover_frames
from neural_fields.atlas.inverse_uv import solve_positions
from neural_fields.atlas.layer_sight import LayerSight, sample_pixels, see_layer
from neural_fields.atlas.placed_picture import Paint, PicturePatch, PlacedPicture
from neural_fields.atlas.uv_extrapolation import DEFAULTS as EXTRAPOLATION
from neural_fields.core.box import Box
from neural_fields.data.flow.compute import consistency_mask
from neural_fields.open_runs.planar_run import PlanarRun
from neural_fields.planar.init.frame_registration import extrapolate_shifts
from neural_fields.tracking.points import DEFAULTS as TRACKING


@dataclass(frozen=True)
class ChartCarryingSettings:
    """Settings of carrying paint from chart to chart."""

    outline_points: int = 33  # along a side of a patch, to find where the next chart shows it
    margin_px: float = 16.0  # pixels of the maps around that place
    max_knots: int = 40_000  # of a patch; they are a pixel of the maps apart, if that is fewer
    min_shared_share: float = 0.3  # of a patch that both charts show, for their pictures to be aligned
    min_likeness: float = 0.8  # correlation of aligned pictures below which the flow is kept
    max_correction_knots: float = 2.0  # by an alignment; more is a mistake


DEFAULTS = ChartCarryingSettings()


@dataclass(frozen=True)
class _ChartStep:
    """Describes a step from one chart of a series to a neighboring one, and the frames in which they meet."""

    start: Chart
    end: Chart
    from_frame: int
    to_frame: int


@dataclass(frozen=True)
class _Handover:
    """How two frames in which charts meet are related: the flow both ways, and where it is known."""

    there: Float[np.ndarray, "height width 2"]
    back: Float[np.ndarray, "height width 2"]
    is_known: Float[np.ndarray, "height width"]  # in the second frame


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
        for step in _order_steps(series, painted):
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
            notes.append(f"propagated to {reached} more of the {len(series)} charts of {_name_series(series)}")
        if short:
            notes.append(
                f"{short} parts of {_name_series(series)} show nothing of it where they meet the others: "
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


def _name_series(series: tuple[Chart, ...]) -> str:
    names = list(dict.fromkeys(chart.layer for chart in series))
    return names[0] if len(names) == 1 else "the clip"


def _order_steps(series: tuple[Chart, ...], painted: list[bool]) -> Iterator[_ChartStep]:
    """Orders the steps from each painted chart to the unpainted charts that are nearest to it, nearer ones first."""
    count = len(series)
    sources = [index for index in range(count) if painted[index]]
    nearest = {i: min(sources, key=lambda source: (abs(source - i), source)) for i in range(count)}
    for index in sorted((i for i in range(count) if not painted[i]), key=lambda i: abs(nearest[i] - i)):
        before = index - 1 if nearest[index] < index else index + 1
        start, end = series[before], series[index]
        yield _ChartStep(start, end, *choose_handover_frames(start, end))


def _carry_patch(
    run: PlanarRun, placed: PlacedPicture, step: _ChartStep, settings: ChartCarryingSettings
) -> PicturePatch | None:
    """Finds where points of a chart lie in the picture that the chart before it shows; None: it shows none of it."""
    maps = run.maps
    start = see_layer(maps, step.from_frame, maps.layers.index(step.start.layer))
    end = see_layer(maps, step.to_frame, maps.layers.index(step.end.layer))
    handover = _relate_frames(run, step)
    if start is None or end is None or handover is None:
        return None

    there = _find_area(placed, step, (start, end), handover.there, settings)
    if there is None:
        return None
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
    before = _align_textures(run, step, uv.reshape(*shape, 2), before.reshape(*shape, 2), settings).reshape(-1, 2)
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
    step: _ChartStep,
    sights: tuple[LayerSight, LayerSight],
    there: Float[np.ndarray, "height width 2"],
    settings: ChartCarryingSettings,
) -> tuple[Box, Float[np.ndarray, "2"]] | None:
    """Finds the part of the second chart that shows the picture, and the size of a pixel there in uv units.

    Args:
        placed: the picture on the first chart.
        step: from chart to chart.
        sights: of the two frames in which they meet.
        there: flow from the first of these frames to the second.
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
        pixels, _ = solve_positions(sights[0].uv_map, grid[inside], sights[0].is_seen)
        uv = sights[1].uv_map.sample_uv(pixels + sample_pixels(there, pixels))
        low, high = np.minimum(low, uv.min(axis=0)), np.maximum(high, uv.max(axis=0))
    if not np.isfinite(low).all():
        return None
    pixel = np.linalg.norm(sights[1].uv_map.jacobian.reshape(-1, 2, 2), axis=-1).mean(axis=0)
    margin = settings.margin_px * pixel
    area = _intersect(Box(*(float(value) for value in (*(low - margin), *(high + margin)))), step.end.box)
    return None if area is None else (area, pixel)


def _align_textures(
    run: PlanarRun,
    step: _ChartStep,
    uv: Float[np.ndarray, "rows columns 2"],
    before: Float[np.ndarray, "rows columns 2"],
    settings: ChartCarryingSettings,
) -> Float[np.ndarray, "rows columns 2"]:
    """Corrects where points of the second chart lie on the first, by the pictures of both charts.

    A picture of a chart is a mean of its frames, with less noise than the flow between two of them (Evangelidis and
    Psarakis, "Parametric Image Alignment Using Enhanced Correlation Coefficient Maximization", 2008).

    Args:
        run: the open run.
        step: from chart to chart.
        uv: points of the second chart.
        before: where they lie on the first, by the flow.
        settings: limits of what counts as a correction.

    Returns:
        Where they lie on the first; as before where the pictures do not tell.
    """
    rows, columns = uv.shape[:2]
    pictures = []
    for chart, places in ((step.end, uv), (step.start, before)):
        rgba = run.canonical(chart.layer).sample_rgba(places.astype(np.float32))
        gray = cv2.cvtColor(np.ascontiguousarray(rgba[..., :3]), cv2.COLOR_RGB2GRAY)
        pictures.append((np.ascontiguousarray(255 * gray), (rgba[..., 3] > 0.5).astype(np.uint8)))
    (wanted, own_mask), (found, mask) = pictures
    both = own_mask & mask
    if both.mean() < settings.min_shared_share or min(rows, columns) < 16:
        return before
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 50, 1e-5)
    start = np.eye(2, 3, dtype=np.float32)
    try:
        likeness, warp = cv2.findTransformECC(wanted, found, start, cv2.MOTION_AFFINE, criteria, both, 3)
    except cv2.error:  # it did not converge, or there is no texture
        return before
    knots = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).astype(np.float32)
    shift = cv2.transform(knots, warp.astype(np.float64)) - knots
    farthest = float(np.linalg.norm(shift, axis=-1).max())
    if likeness < settings.min_likeness or farthest > settings.max_correction_knots:
        return before
    down, right = np.gradient(before, axis=(0, 1))
    return before + shift[..., :1] * right + shift[..., 1:] * down


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


def _relate_frames(run: PlanarRun, step: _ChartStep) -> _Handover | None:
    """Computes the flow between the frames in which two charts meet; None: hardly anything matches."""
    maps = run.maps
    width, height = maps.size
    if step.from_frame == step.to_frame:
        still = np.zeros((height, width, 2), np.float32)
        return _Handover(still, still, np.ones((height, width), np.float32))
    frames: list[UInt8[np.ndarray, "height width"]] = [
        cv2.cvtColor(np.array(run.video.frames[t]), cv2.COLOR_RGB2GRAY) for t in (step.from_frame, step.to_frame)
    ]
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    dis.setFinestScale(0)
    there, back = dis.calc(frames[0], frames[1], None), dis.calc(frames[1], frames[0], None)
    weights = [
        maps.read_layer_weight_small(t, maps.layers.index(chart.layer))
        for t, chart in ((step.from_frame, step.start), (step.to_frame, step.end))
    ]
    # Where something is in front, the flow is that thing's: the layer's own goes on smoothly behind it.
    results, known = [], np.ones((height, width), np.float32)
    for flow, other, own, far in ((there, back, *weights), (back, there, *reversed(weights))):
        x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
        reached = cv2.remap(far, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR)
        trusted = consistency_mask(flow, other) & (np.minimum(own, reached) >= TRACKING.min_weight)
        if trusted.mean() < TRACKING.min_trusted_share:
            return None
        gap = cv2.distanceTransform((~trusted).astype(np.uint8), cv2.DIST_L2, 3)
        known = (gap <= TRACKING.max_flow_gap * max(width, height)).astype(np.float32)
        results.append(np.where(trusted[..., None], flow, extrapolate_shifts(flow, trusted)).astype(np.float32))
    return _Handover(results[0], results[1], known)
