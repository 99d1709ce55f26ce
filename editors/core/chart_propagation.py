"""Propagates paint from one chart of a canonical picture to the other charts, so that one edit covers the entire clip.

If a layer or a clip has several charts (`neural_fields/atlas/chart.py`), neighboring charts meet in time: the edit is
rendered into the last frame of one chart, follows the optical flow into the first frame of the next, and is lifted
from there into that chart. Charts that overlap in time share a frame and need no flow.

An object in front of the layer does not interrupt the propagation: the maps give the position of the layer behind it,
and the flow is extrapolated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from neural_fields.atlas.canonical import CanonicalImage, Overlay, resample_overlay
from neural_fields.atlas.chart import Chart, choose_handover_frames
from neural_fields.atlas.paint_lifting import DEFAULTS as LIFTING
from neural_fields.atlas.paint_lifting import lift_paint, read_frame_maps
from neural_fields.atlas.uv_maps import Maps
from neural_fields.data.flow.compute import consistency_mask
from neural_fields.imaging.alpha import premultiply, resize_image, unpremultiply
from neural_fields.open_runs.planar_run import PlanarRun
from neural_fields.planar.init.frame_registration import extrapolate_shifts
from neural_fields.rendering.overlay_pass import OverlayPass
from neural_fields.tracking.points import DEFAULTS as TRACKING


@dataclass(frozen=True)
class ChartCarryingSettings:
    """Settings of carrying an edit from chart to chart."""

    max_texels: int = 16_000_000  # largest overlay that covers a part of its picture and is extended
    min_alpha: float = 0.02  # fainter paint in a frame is not propagated


DEFAULTS = ChartCarryingSettings()


@dataclass(frozen=True)
class _ChartStep:
    """Describes a step from one chart of a series to a neighboring one, and the frames in which they meet."""

    start: Chart
    end: Chart
    from_frame: int
    to_frame: int


def carry_to_charts(
    run: PlanarRun, overlays: Mapping[str, Overlay], settings: ChartCarryingSettings = DEFAULTS
) -> tuple[dict[str, Overlay], list[str]]:
    """Propagates the paint on one chart to all charts of its series.

    Charts that were painted on themselves stay unchanged.

    Args:
        run: the open run.
        overlays: painted overlays, by layer.
        settings: limits of the propagation.

    Returns:
        The overlays of all charts, by layer, and notes for the user.
    """
    result = dict(overlays)
    notes: list[str] = []
    maps = run.maps
    for series in maps.charts:
        painted = []
        for chart in series:
            own = result.get(chart.layer)
            painted.append(own is not None and bool((_crop_to_chart(own, chart)[..., 3] > 0).any()))
        if not any(painted) or all(painted):
            continue
        frames, pictures = run.video.frames, run.canonicals
        done, short = list(painted), 0
        for step in _order_steps(series, painted):
            # The edit in the frame where the charts meet: straight RGBA at the size of the maps, without light.
            rgba = np.zeros((maps.size[1], maps.size[0], 4), np.float32)
            layer = step.start.layer
            if layer in result:
                renderer = OverlayPass(maps, pictures, {layer: result[layer]})
                rgba, _ = renderer.warp_overlay(step.from_frame, maps.layers.index(layer), maps.size)
            if step.from_frame != step.to_frame:
                rgba = _follow_flow(maps, rgba, frames, step)
            lifted = _lift_to_chart(pictures, maps, rgba, frames[step.to_frame], step, settings)
            if lifted is None:
                short += 1
                continue
            own = result.get(step.end.layer)
            if own is not None:  # the carried edit takes the place of this chart alone
                if own.box != lifted.box:  # it covers only a part of the picture
                    finer = own.box.width / own.size[0], own.box.height / own.size[1]
                    width, height = lifted.box.width / finer[0], lifted.box.height / finer[1]
                    share = min(1.0, (settings.max_texels / (width * height)) ** 0.5)
                    size = (max(1, round(share * width)), max(1, round(share * height)))
                    own = Overlay(resample_overlay(own, size, lifted.box), lifted.box, own.notes)
                larger = unpremultiply(resize_image(premultiply(lifted.rgba), own.size))
                pasted = Overlay(own.rgba.copy(), own.box, own.notes)
                _crop_to_chart(pasted, step.end)[:] = _crop_to_chart(Overlay(larger, own.box), step.end)
                lifted = pasted
            result[step.end.layer] = lifted
            done[series.index(step.end)] = True
        reached = sum(done) - sum(painted)
        if reached:
            notes.append(f"propagated to {reached} more of the {len(series)} charts of {_name_series(series)}")
        if short:
            notes.append(
                f"{len(series) - sum(done)} parts of {_name_series(series)} show nothing of it where they meet the "
                "others: paint there too if it belongs there"
            )
    return result, notes


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


def _crop_to_chart(overlay: Overlay, chart: Chart) -> Float[np.ndarray, "rows columns 4"]:
    """Returns the part of an overlay that lies in a chart, as a view."""
    height, width = overlay.rgba.shape[:2]
    box, own = overlay.box, chart.box
    left, right = (round((u - box.u0) / box.width * width) for u in (own.u0, own.u1))
    top, bottom = (round((v - box.v0) / box.height * height) for v in (own.v0, own.v1))
    return overlay.rgba[max(0, top) : max(0, bottom), max(0, left) : max(0, right)]


def _follow_flow(
    maps: Maps,
    rgba: Float[np.ndarray, "height width 4"],
    frames: UInt8[np.ndarray, "time height width 3"],
    step: _ChartStep,
) -> Float[np.ndarray, "height width 4"]:
    """Moves the edit along the flow from one frame to another; transparent where nothing matches."""
    start = cv2.cvtColor(np.array(frames[step.from_frame]), cv2.COLOR_RGB2GRAY)
    end = cv2.cvtColor(np.array(frames[step.to_frame]), cv2.COLOR_RGB2GRAY)
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    back, there = dis.calc(end, start, None), dis.calc(start, end, None)
    height, width = end.shape
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    here = maps.read_layer_weight(step.to_frame, maps.layers.index(step.end.layer), maps.size) >= TRACKING.min_weight
    before = maps.read_layer_weight(step.from_frame, maps.layers.index(step.start.layer), maps.size)
    both = here & (cv2.remap(before, x + back[..., 0], y + back[..., 1], cv2.INTER_LINEAR) >= TRACKING.min_weight)
    trusted: Bool[np.ndarray, "height width"] = consistency_mask(back, there) & both
    # Where something is in front, the flow is that thing's: the layer's own goes on smoothly behind it.
    if trusted.mean() < TRACKING.min_trusted_share:
        return np.zeros_like(rgba)
    gap = cv2.distanceTransform((~trusted).astype(np.uint8), cv2.DIST_L2, 3)
    reached = gap <= TRACKING.max_flow_gap * max(width, height)
    flow = np.where(trusted[..., None], back, extrapolate_shifts(back, trusted))
    moved = cv2.remap(premultiply(rgba), x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR)
    return unpremultiply(np.where(reached[..., None], moved, np.float32(0)).astype(np.float32))


def _lift_to_chart(
    pictures: Mapping[str, CanonicalImage],
    maps: Maps,
    rgba: Float[np.ndarray, "height width 4"],
    frame: UInt8[np.ndarray, "h w 3"],
    step: _ChartStep,
    settings: ChartCarryingSettings,
) -> Overlay | None:
    """Lifts the edit of a frame into an overlay of the chart's layer; returns None if nothing is visible."""
    index, t = maps.layers.index(step.end.layer), step.to_frame
    seen = maps.read_layer_weight(t, index, maps.size) >= LIFTING.min_weight
    if not ((rgba[..., 3] > settings.min_alpha) & seen).any():
        return None
    here = read_frame_maps(maps, pictures, t, maps.size)
    # As if the layer were alone: then the color that renders as the painted one is the edit's own.
    alone = np.zeros_like(here.weight)
    alone[index] = 1
    lit = rgba[..., :3] * here.gain[index]
    alpha = np.where(rgba[..., 3:] > settings.min_alpha, rgba[..., 3:], 0)
    painted = np.concatenate([lit, alpha], axis=-1).astype(np.float32)
    overlay, _, _ = lift_paint(painted, np.asarray(frame, np.float32) / 255, replace(here, weight=alone), index)
    return Overlay(overlay, pictures[step.end.layer].box) if (overlay[..., 3] > 0).any() else None
