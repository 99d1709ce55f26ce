"""Following points through a fitted model: to the canonical plane, and from there to where every frame shows it.

Where what shows a point changes from one sheet of its layer to the next, or from one segment of the clip to the next,
the point goes over in a frame that both have, or along the flow between the last frame of the one and the first of the
other, as edits do. Plain flow chaining, which the model has to beat, stands beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from neural_fields import coords
from neural_fields.data.flow import FlowField
from neural_fields.data.tracks import Tracks
from neural_fields.planar.mapping import Mapping
from neural_fields.planar.model import PlanarModel
from neural_fields.planar.placement import spread
from neural_fields.planar.sheets import Chart

__all__ = ["Tracks", "carried", "chain_flow", "hand_over", "series_of", "solve_near", "track", "uv_at"]

ROUNDS = 8  # Newton steps from the last frame's position; a mapping that is nearly affine needs two or three
LONGEST_MOVE = 0.1  # xy units a step, so that a fold does not throw a point across the frame
NEAR = 0.5  # pixels of uv error that still count as found
SHOWN = 0.5  # of the weight: a pixel with less of a layer shows something else
MATCHED = 0.02  # of a frame: with less in common with the next one it is another shot
REACH = 0.1  # of the longer side: so far from matched pixels the flow is trusted to go on as they do


@torch.no_grad()
def track(
    model: PlanarModel,
    points: Shaped[np.ndarray, "points 2"],
    frame: int,
    layers: Int[np.ndarray, " points"] | None = None,
    size: tuple[int, int] | None = None,
    flow: FlowField | None = None,
) -> Tracks:
    """Follows points seen in one frame through all frames.

    A point belongs to the layer with the largest weight there. Its uv is looked for in every other frame, outwards from
    `frame`, each time near where the frame before had it: where a mapping shows a uv twice, the nearer place is taken.

    Args:
        points: pixel positions (x, y) in frame `frame`.
        layers: the layer of each point, where it is known.
        size: (width, height) that positions are pixels of; by default that of the fit.
        flow: takes points from one sheet of a layer to the next; without it they end where their sheet does.

    Returns:
        A point is visible where it lies in the frame, its layer has more than half of the weight, and its uv was found
        to within `NEAR` pixels.
    """
    width, height = size or model.shape.size
    start = coords.normalise_pixels(torch.from_numpy(np.asarray(points, np.float32)), width, height)
    chosen = model(_xyt(model, start, frame)).weight.argmax(1) if layers is None else torch.from_numpy(layers)
    count = model.shape.frame_count
    places = start[:, None].repeat(1, count, 1)
    error = torch.zeros(len(start), count)
    for number in range(len(model.layers)):
        own = (chosen == number).nonzero()[:, 0]
        if len(own):
            places[own], error[own] = _follow(model, number, start[own], frame, flow)
    weight = torch.stack([_weight(model, places[:, t], t, chosen) for t in range(count)], 1)
    pixels = coords.denormalise_pixels(places, width, height)
    inside = (pixels >= 0).all(-1) & (pixels < pixels.new_tensor([width, height])).all(-1)
    visible = inside & (weight > 0.5) & (error < NEAR)
    return Tracks(pixels.double().numpy(), visible.numpy())


def uv_at(
    model: PlanarModel, points: Shaped[np.ndarray, "points 2"], frame: int, layer: int
) -> Float[np.ndarray, "points 2"]:
    """uv of pixel positions of the fit's size in one layer and frame."""
    xy = coords.normalise_pixels(torch.from_numpy(np.asarray(points, np.float32)), *model.shape.size)
    with torch.no_grad():
        return model.mappings[layer](_xyt(model, xy, frame)).numpy()


@torch.no_grad()
def solve_near(
    mapping: Mapping, uv: Float[Tensor, "n 2"], start: Float[Tensor, "n 2"], time: float, pixel: float
) -> tuple[Float[Tensor, "n 2"], Float[Tensor, " n"]]:
    """Newton's method for mapping(x, y, time) = uv, from `start`.

    Args:
        start: xy units.
        time: network time.
        pixel: how far apart, in xy units, the derivatives are measured.

    Returns:
        xy, and the distance in uv that is left.
    """

    def at(xy: Tensor) -> Tensor:
        return mapping(torch.cat([xy, xy.new_full((len(xy), 1), time)], dim=1))

    best, xy, here = start, start, at(start)
    error = (here - uv).norm(dim=1)
    for _ in range(ROUNDS):
        right, below = at(torch.cat([xy + xy.new_tensor([pixel, 0]), xy + xy.new_tensor([0, pixel])])).chunk(2)
        jacobian = torch.stack([right - here, below - here], dim=-1) / pixel + 1e-6 * torch.eye(2)
        move = torch.linalg.solve_ex(jacobian, uv - here)[0].nan_to_num()
        length = move.norm(dim=1, keepdim=True).clamp_min(1e-9)
        xy = xy + move * (LONGEST_MOVE / length).clamp(max=1)
        here = at(xy)
        now = (here - uv).norm(dim=1)
        better = now < error
        best, error = torch.where(better[:, None], xy, best), torch.where(better, now, error)
        if error.max() < 1e-3 * pixel:
            break
    return best, error


def chain_flow(
    flow: FlowField,
    points: Shaped[np.ndarray, "points 2"],
    frame: int,
    size: tuple[int, int] | None = None,
) -> Tracks:
    """Follows points by adding up flow from frame to frame, forwards and backwards; what is lost once stays lost.

    Args:
        points: pixel positions (x, y) in frame `frame`.
        size: (width, height) that positions are pixels of; by default that of the flow.
    """
    scale = np.array(flow.size) / (size or flow.size)
    count = len(flow.forward) + 1
    places = np.repeat(np.asarray(points, np.float64)[:, None] * scale, count, axis=1)
    visible = np.zeros((len(places), count), bool)
    visible[:, frame] = _inside(places[:, frame], flow.size)
    for t in range(frame + 1, count):
        step, ok = _flow_at(flow.forward[t - 1], flow.forward_ok[t - 1], places[:, t - 1])
        places[:, t] = places[:, t - 1] + step
        visible[:, t] = visible[:, t - 1] & ok & _inside(places[:, t], flow.size)
    for t in range(frame - 1, -1, -1):
        step, ok = _flow_at(flow.backward[t], flow.backward_ok[t], places[:, t + 1])
        places[:, t] = places[:, t + 1] + step
        visible[:, t] = visible[:, t + 1] & ok & _inside(places[:, t], flow.size)
    return Tracks(places / scale, visible)


# --- from chart to chart --------------------------------------------------------------------------------------------


def series_of(model: PlanarModel, layer: int) -> list[Chart]:
    """The charts, in the order of time, that show what a layer shows: at least one, which lasts as long as the clip."""
    name, shape = model.layers[layer], model.shape.layers[layer]
    for series in model.charts():
        if any(chart.layer == name for chart in series):
            return list(series)
    return [Chart(name, 0, model.shape.frame_count - 1, shape.box)]


def hand_over(start: Chart, end: Chart) -> tuple[int, int]:
    """The frames by which to go from a chart to the one beside it in time: one that both have, or neighbours."""
    if start.first < end.first:
        frames, shared = (start.last, end.first), end.first <= start.last
        middle = (end.first + start.last) // 2
    else:
        frames, shared = (start.first, end.last), start.first <= end.last
        middle = (start.first + end.last) // 2
    return (middle, middle) if shared else frames


@torch.no_grad()
def carried(
    model: PlanarModel, layers: Sequence[int], flow: FlowField, source: int, target: int
) -> tuple[Float[np.ndarray, "height width 2"], Bool[np.ndarray, "height width"]]:
    """Where the pixels of a frame go in the next one or the one before, as far as some layers show there.

    Args:
        layers: numbers of the layers.
        source, target: neighbouring frames.

    Returns:
        Vectors in pixels of the flow. Where the flow is not trusted, or another layer is in front, they go on smoothly;
        the mask says where that is near enough to something trusted.
    """
    pair, forward = min(source, target), source < target
    vectors = np.asarray((flow.forward if forward else flow.backward)[pair], np.float32)
    shown = [
        model.frame(t, flow.size).weight[:, list(layers)].sum(1).view(vectors.shape[:2]).numpy() >= SHOWN
        for t in (source, target)
    ]
    own = coords.pixel_centres(*flow.size).numpy()
    column, row = np.floor(own + vectors).astype(int).transpose(2, 0, 1)
    width, height = flow.size
    there = shown[1][row.clip(0, height - 1), column.clip(0, width - 1)]
    trusted = np.asarray((flow.forward_ok if forward else flow.backward_ok)[pair]) & shown[0] & there
    if trusted.mean() < MATCHED:
        return np.zeros_like(vectors), np.zeros_like(trusted)
    near = cv2.distanceTransform((~trusted).astype(np.uint8), cv2.DIST_L2, 3) <= REACH * max(flow.size)
    return np.where(trusted[..., None], vectors, spread(vectors, trusted)), near


@dataclass
class _Followed:
    """Some points of one layer: where they are in every frame, in xy units, and how far off in pixels of the fit."""

    places: Float[Tensor, "n frames 2"]
    errors: Float[Tensor, "n frames"]


def _follow(
    model: PlanarModel, layer: int, start: Float[Tensor, "n 2"], frame: int, flow: FlowField | None
) -> tuple[Float[Tensor, "n frames 2"], Float[Tensor, "n frames"]]:
    """xy of points of a layer in every frame, and the error that is left in pixels of the fit; infinite once lost."""
    count, series = model.shape.frame_count, series_of(model, layer)
    name = model.layers[layer]
    own = [index for index, chart in enumerate(series) if chart.layer == name]
    at = min(own, key=lambda index: max(series[index].first - frame, frame - series[index].last, 0))
    result = _Followed(start[:, None].repeat(1, count, 1), torch.zeros(len(start), count))
    for step in (1, -1):
        index, t = at, frame
        while True:
            following = series[index + step] if 0 <= index + step < len(series) else None
            stop, next_frame = hand_over(series[index], following) if following else ((count - 1) * (step > 0), 0)
            if following and (stop - t) * step < 0:  # already beyond the middle of what both have
                stop = next_frame = t
            number = model.layers.index(series[index].layer)
            _follow_in_chart(model, number, result, t, range(t + step, stop + step, step))
            if following is None:
                break
            beyond = slice(next_frame, count) if step > 0 else slice(0, next_frame + 1)
            place, known = _hop(model, (series[index], following), result, stop, next_frame, flow)
            result.places[:, beyond] = place[:, None]
            result.errors[:, beyond] = torch.where(known, 0.0, torch.inf)[:, None]
            index, t = index + step, next_frame
    return result.places, result.errors


def _hop(
    model: PlanarModel, charts: tuple[Chart, Chart], points: _Followed, source: int, target: int, flow: FlowField | None
) -> tuple[Float[Tensor, "n 2"], Bool[Tensor, " n"]]:
    """Where points of one frame are in the next, and which of them are still known."""
    place, known = points.places[:, source], points.errors[:, source] < NEAR
    if source == target or flow is None:
        return place, known & (source == target)
    layers = sorted({model.layers.index(chart.layer) for chart in charts})
    vectors, near = carried(model, layers, flow, source, target)
    pixels = coords.denormalise_pixels(place, *flow.size).double().numpy()
    step, trusted = _flow_at(vectors, near, pixels)
    beyond = np.maximum(-pixels, pixels - np.array(flow.size)).max(1)
    moved = coords.normalise_pixels(torch.from_numpy(pixels + step).float(), *flow.size)
    return moved, known & torch.from_numpy(trusted & (beyond <= REACH * max(flow.size)))


def _follow_in_chart(model: PlanarModel, layer: int, points: _Followed, frame: int, order: range) -> None:
    """Goes on from where points are in `frame` through other frames of the same chart."""
    count, pixel = model.shape.frame_count, 2 / max(model.shape.size)
    mapping: Mapping = model.mappings[layer]  # type: ignore[assignment]
    before = points.places[:, frame]
    lost = torch.isinf(points.errors[:, frame])
    uv, moved = mapping(_xyt(model, before, frame)), torch.zeros_like(before)
    for t in order:
        time = float(coords.normalise_time(t, count))
        found, error = solve_near(mapping, uv, before + moved, time, pixel)
        again, other = solve_near(mapping, uv, before, time, pixel)  # a guess that was off may end elsewhere
        swap = other < 0.5 * error
        found, error = torch.where(swap[:, None], again, found), torch.where(swap, other, error)
        error = torch.where(lost, torch.inf, error / (pixel * mapping.uv_scale))
        points.places[:, t], points.errors[:, t] = found, error
        known = (error < NEAR)[:, None]
        moved = torch.where(known, found - before, moved)
        before = torch.where(known, found, before + moved)


def _xyt(model: PlanarModel, xy: Float[Tensor, "n 2"], t: int) -> Float[Tensor, "n 3"]:
    time = float(coords.normalise_time(t, model.shape.frame_count))
    return torch.cat([xy, xy.new_full((len(xy), 1), time)], dim=1)


def _weight(model: PlanarModel, xy: Float[Tensor, "n 2"], t: int, layers: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The weight of each point's own layer at its place; segments that fade into each other count as one."""
    same = torch.zeros(len(model.layers), len(model.layers))
    for layer in range(len(model.layers)):
        same[layer, [model.layers.index(chart.layer) for chart in series_of(model, layer)]] = 1
    return (model(_xyt(model, xy, t)).weight * same[layers]).sum(1)


def _flow_at(
    vectors: Shaped[np.ndarray, "height width 2"], ok: Bool[np.ndarray, "height width"], points: np.ndarray
) -> tuple[Float[np.ndarray, "points 2"], Bool[np.ndarray, " points"]]:
    """Flow between pixel centres, and whether the pixel that holds the point can be trusted."""
    height, width = ok.shape
    x, y = (np.ascontiguousarray(points[:, axis, None] - 0.5, np.float32) for axis in (0, 1))
    field = np.asarray(vectors, np.float32)
    step = cv2.remap(field, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[:, 0]
    column, row = np.floor(points[:, 0]).astype(int), np.floor(points[:, 1]).astype(int)
    trusted = np.asarray(ok)[row.clip(0, height - 1), column.clip(0, width - 1)]
    return step.astype(np.float64), trusted


def _inside(points: np.ndarray, size: tuple[int, int]) -> Bool[np.ndarray, " points"]:
    return np.asarray(((points >= 0) & (points < size)).all(-1))
