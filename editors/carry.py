"""One edit for all of a clip: what is painted on one sheet of a canonical picture is carried to the others.

Where a layer has several sheets (`planar/sheets.py`) or a clip several segments, neighbours meet in time: the edit is
rendered into the last frame of the one, follows the optical flow into the first frame of the other, and is lifted from
there into its sheet. Segments that overlap share a frame; no flow is needed then.

What hides a layer there does not hide the edit: the maps know where the layer lies behind it, and the flow is carried
on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from editors.frame import MIN_WEIGHT, frame_maps, lift
from neural_fields import canonical
from neural_fields.baking import Maps
from neural_fields.canonical import CanonicalImage, Overlay, fit
from neural_fields.data.flow import consistency_mask
from neural_fields.evaluation import read_source
from neural_fields.pictures import premultiplied, resize, straight
from neural_fields.planar.placement import spread
from neural_fields.planar.sheets import Chart
from neural_fields.rendering import Renderer
from neural_fields.run import Run
from neural_fields.tracking import MATCHED, REACH, SHOWN, hand_over

MOST_TEXELS = 16_000_000  # of an overlay that covers a part and is carried beyond it
FAINT = 0.02  # less of an edit than this in a frame is not worth carrying on


@dataclass(frozen=True)
class _Step:
    """From one chart of a series to the next or to the one before, and the frames by which to go."""

    start: Chart
    end: Chart
    from_frame: int
    to_frame: int


def carry(run: Run, maps: Maps, overlays: Mapping[str, Overlay]) -> tuple[dict[str, Overlay], list[str]]:
    """Overlays with what was painted on one chart put on all charts of its series, and what to tell the user.

    A chart that was painted on itself is left as it was painted.
    """
    result = dict(overlays)
    notes: list[str] = []
    for series in maps.charts:
        painted = [_is_painted(result, chart) for chart in series]
        if not any(painted) or all(painted):
            continue
        frames = read_source(run).frames
        pictures = {name: canonical.pristine(run.canonical, name) for name in maps.layers}
        done, short = list(painted), 0
        for step in _steps(series, painted):
            seen = _rendered(pictures, maps, result, step.start, step.from_frame)
            arrived = _followed(maps, seen, frames, step) if step.from_frame != step.to_frame else seen
            lifted = _lifted(pictures, maps, arrived, frames[step.to_frame], step)
            if lifted is None:
                short += 1
                continue
            result[step.end.layer] = _joined(result.get(step.end.layer), lifted, step.end)
            done[series.index(step.end)] = True
        reached = sum(done) - sum(painted)
        if reached:
            notes.append(f"carried to {reached} more of the {len(series)} parts of {_title(series)}")
        if short:
            notes.append(
                f"{len(series) - sum(done)} parts of {_title(series)} show nothing of it where they meet the others: "
                "paint there too if it belongs there"
            )
    return result, notes


def _title(series: tuple[Chart, ...]) -> str:
    names = list(dict.fromkeys(chart.layer for chart in series))
    return names[0] if len(names) == 1 else "the clip"


def _steps(series: tuple[Chart, ...], painted: list[bool]) -> Iterator[_Step]:
    """The ways to all charts that were not painted on, each from the nearest that was; nearer ones come first."""
    count = len(series)
    sources = [index for index in range(count) if painted[index]]
    nearest = {i: min(sources, key=lambda source: (abs(source - i), source)) for i in range(count)}
    for index in sorted((i for i in range(count) if not painted[i]), key=lambda i: abs(nearest[i] - i)):
        before = index - 1 if nearest[index] < index else index + 1
        start, end = series[before], series[index]
        yield _Step(start, end, *hand_over(start, end))


def _is_painted(overlays: Mapping[str, Overlay], chart: Chart) -> bool:
    overlay = overlays.get(chart.layer)
    return overlay is not None and bool((_part(overlay, chart)[..., 3] > 0).any())


def _part(overlay: Overlay, chart: Chart) -> Float[np.ndarray, "rows columns 4"]:
    """The part of an overlay that lies in a chart, as a view."""
    height, width = overlay.rgba.shape[:2]
    box, own = overlay.box, chart.box
    left, right = (round((u - box.u0) / box.width * width) for u in (own.u0, own.u1))
    top, bottom = (round((v - box.v0) / box.height * height) for v in (own.v0, own.v1))
    return overlay.rgba[max(0, top) : max(0, bottom), max(0, left) : max(0, right)]


def _rendered(
    pictures: Mapping[str, CanonicalImage], maps: Maps, overlays: Mapping[str, Overlay], chart: Chart, t: int
) -> Float[np.ndarray, "height width 4"]:
    """The edit as it lies in a frame at the size of the fit: straight RGBA, without light."""
    if chart.layer not in overlays:
        return np.zeros((maps.size[1], maps.size[0], 4), np.float32)
    index = maps.layers.index(chart.layer)
    rgba, _ = Renderer(maps, pictures, {chart.layer: overlays[chart.layer]}).overlay_in_frame(t, index, maps.size)
    return rgba


def _followed(
    maps: Maps,
    rgba: Float[np.ndarray, "height width 4"],
    frames: UInt8[np.ndarray, "time height width 3"],
    step: _Step,
) -> Float[np.ndarray, "height width 4"]:
    """The edit moved along the flow from one frame to another; transparent where nothing matches."""
    start, end = (cv2.cvtColor(np.array(frames[t]), cv2.COLOR_RGB2GRAY) for t in (step.from_frame, step.to_frame))
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    back, there = dis.calc(end, start, None), dis.calc(start, end, None)
    height, width = end.shape
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    here = maps.layer_weight(step.to_frame, maps.layers.index(step.end.layer), maps.size) >= SHOWN
    before = maps.layer_weight(step.from_frame, maps.layers.index(step.start.layer), maps.size)
    both = here & (cv2.remap(before, x + back[..., 0], y + back[..., 1], cv2.INTER_LINEAR) >= SHOWN)
    trusted: Bool[np.ndarray, "height width"] = consistency_mask(back, there) & both
    # Where something is in front, the flow is that thing's: the layer's own goes on smoothly behind it.
    if trusted.mean() < MATCHED:
        return np.zeros_like(rgba)
    reached = cv2.distanceTransform((~trusted).astype(np.uint8), cv2.DIST_L2, 3) <= REACH * max(width, height)
    flow = np.where(trusted[..., None], back, spread(back, trusted))
    moved = cv2.remap(premultiplied(rgba), x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR)
    return straight(np.where(reached[..., None], moved, np.float32(0)).astype(np.float32))


def _lifted(
    pictures: Mapping[str, CanonicalImage],
    maps: Maps,
    rgba: Float[np.ndarray, "height width 4"],
    frame: UInt8[np.ndarray, "h w 3"],
    step: _Step,
) -> Overlay | None:
    """The edit of a frame as an overlay of the chart's layer; None where there is none to speak of."""
    index, t = maps.layers.index(step.end.layer), step.to_frame
    seen = maps.layer_weight(t, index, maps.size) >= MIN_WEIGHT
    if ((rgba[..., 3] > FAINT) & seen).sum() < 4:
        return None
    here = frame_maps(maps, pictures, t, maps.size)
    # As if the layer were alone: then the colour that renders as the painted one is the edit's own.
    alone = np.zeros_like(here.weight)
    alone[index] = 1
    lit = rgba[..., :3] * here.gain[index]
    painted = np.concatenate([lit, np.where(rgba[..., 3:] > FAINT, rgba[..., 3:], 0)], axis=-1).astype(np.float32)
    overlay, _, _ = lift(painted, np.asarray(frame, np.float32) / 255, replace(here, weight=alone), index)
    return Overlay(overlay, pictures[step.end.layer].box) if (overlay[..., 3] > 0).any() else None


def _joined(overlay: Overlay | None, lifted: Overlay, chart: Chart) -> Overlay:
    """An overlay with the carried edit in a chart that had none."""
    if overlay is None:
        return lifted
    if overlay.box != lifted.box:  # it covers only a part of the picture
        finer = overlay.box.width / overlay.size[0], overlay.box.height / overlay.size[1]
        width, height = lifted.box.width / finer[0], lifted.box.height / finer[1]
        share = min(1.0, (MOST_TEXELS / (width * height)) ** 0.5)
        size = (max(1, round(share * width)), max(1, round(share * height)))
        overlay = Overlay(fit(overlay, size, lifted.box), lifted.box, overlay.notes)
    height, width = overlay.rgba.shape[:2]
    larger = straight(resize(premultiplied(lifted.rgba), (width, height)))
    rgba = overlay.rgba.copy()
    result = Overlay(rgba, overlay.box, overlay.notes)
    _part(result, chart)[:] = _part(Overlay(larger, overlay.box), chart)
    return result
