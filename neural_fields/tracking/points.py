"""Tracks points through a trained model: to the canonical plane, and from there to its position in every frame.

A point passes from one chart of its layer to the next in a frame that both have, or along the flow between the last
frame of the one and the first frame of the other, as edits do. `chain_flow` is the baseline that the model has to beat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from neural_fields.atlas.chart import Chart, choose_handover_frames
from neural_fields.core import coords
from neural_fields.data.flow.compute import FlowField
from neural_fields.data.point_tracks import PointTracks
from neural_fields.planar.composition.model import PlanarModel
from neural_fields.planar.init.frame_registration import extrapolate_shifts
from neural_fields.planar.mappings.mapping import Mapping


@dataclass(frozen=True)
class TrackingSettings:
    """Settings of point tracking through a model."""

    newton_steps: int = 8  # most steps from the position in the last frame; a nearly affine mapping needs two or three
    max_step: float = 0.1  # longest step in xy units, so that a fold does not throw a point across the frame
    tolerance_px: float = 1e-3  # the search ends when the error in uv is smaller than this many pixels
    damping: float = 1e-6  # added to the diagonal of the Jacobian
    max_error_px: float = 0.5  # a point with a larger error in uv, in pixels, was not found
    # A search from the last position replaces one from the predicted position if its error is below this share.
    restart_error_ratio: float = 0.5
    min_weight: float = 0.5  # a point is visible where its layer has more than this weight
    min_trusted_share: float = 0.02  # with a smaller share of trusted flow, the next frame is another shot
    max_flow_gap: float = 0.1  # flow is extrapolated this far from trusted pixels, as a share of the longer side


DEFAULTS = TrackingSettings()


@torch.no_grad()
def track_through_model(
    model: PlanarModel,
    points: Shaped[np.ndarray, "points 2"],
    frame: int,
    layers: Int[np.ndarray, " points"] | None = None,
    size: tuple[int, int] | None = None,
    flow: FlowField | None = None,
    settings: TrackingSettings = DEFAULTS,
) -> PointTracks:
    """Tracks points seen in one frame through all frames.

    A point belongs to the layer with the largest weight there. Its uv is looked for in every other frame, outwards from
    `frame`, each time near where the frame before had it: where a mapping shows a uv twice, the nearer place is taken.

    Args:
        model: a trained model.
        points: pixel positions (x, y) in frame `frame`.
        frame: number of the frame.
        layers: the layer of each point, where it is known.
        size: (width, height) that positions are pixels of; by default that of the model.
        flow: takes points from one chart of a layer to the next; without it they end where their chart does.
        settings: steps, tolerances and limits.

    Returns:
        A point is visible where it is inside the frame, its layer has more than half of the weight, and its uv was
        found to within `max_error_px` pixels.
    """
    width, height = size or model.shape.size
    start = coords.normalize_pixels(torch.from_numpy(np.asarray(points, np.float32)), width, height)
    chosen = model(_make_xyt(model, start, frame)).weight.argmax(1) if layers is None else torch.from_numpy(layers)
    count, layer_count = model.shape.frame_count, len(model.layers)
    places = start[:, None].repeat(1, count, 1)
    error = torch.zeros(len(start), count)
    for number in range(layer_count):
        own = (chosen == number).nonzero()[:, 0]
        if len(own):
            places[own], error[own] = _track_in_layer(model, number, start[own], frame, flow, settings)
    # The weight of each point's own layer at its place; charts that fade into each other count as one.
    same = torch.zeros(layer_count, layer_count)
    for number in range(layer_count):
        same[number, [model.layers.index(chart.layer) for chart in find_chart_series(model, number)]] = 1
    weights = [(model(_make_xyt(model, places[:, t], t)).weight * same[chosen]).sum(1) for t in range(count)]
    pixels = coords.denormalize_pixels(places, width, height)
    inside = (pixels >= 0).all(-1) & (pixels < pixels.new_tensor([width, height])).all(-1)
    visible = inside & (torch.stack(weights, 1) > settings.min_weight) & (error < settings.max_error_px)
    return PointTracks(pixels.double().numpy(), visible.numpy())


def compute_uv(
    model: PlanarModel, points: Shaped[np.ndarray, "points 2"], frame: int, layer: int
) -> Float[np.ndarray, "points 2"]:
    """Computes the uv of pixel positions in one layer and frame.

    Args:
        model: a trained model.
        points: (x, y) in pixels of the model's size.
        frame: number of the frame in the run.
        layer: index of the layer, front to back.
    """
    xy = coords.normalize_pixels(torch.from_numpy(np.asarray(points, np.float32)), *model.shape.size)
    with torch.no_grad():
        return model.mappings[layer](_make_xyt(model, xy, frame)).numpy()


@torch.no_grad()
def solve_near(
    mapping: Mapping,
    uv: Float[Tensor, "n 2"],
    start: Float[Tensor, "n 2"],
    time: float,
    pixel: float,
    settings: TrackingSettings = DEFAULTS,
) -> tuple[Float[Tensor, "n 2"], Float[Tensor, " n"]]:
    """Solves mapping(x, y, time) = uv by Newton's method, from `start`.

    Args:
        mapping: mapping of the layer.
        uv: canonical positions to find.
        start: first guesses, in xy units.
        time: network time, -1 to 1.
        pixel: distance in xy units over which derivatives are measured.
        settings: number and length of steps, tolerance.

    Returns:
        xy, and the distance in uv that is left.
    """

    def map_points(xy: Tensor) -> Tensor:
        return mapping(torch.cat([xy, xy.new_full((len(xy), 1), time)], dim=1))

    best, xy, here = start, start, map_points(start)
    error = (here - uv).norm(dim=1)
    for _ in range(settings.newton_steps):
        neighbors = torch.cat([xy + xy.new_tensor([pixel, 0]), xy + xy.new_tensor([0, pixel])])
        right, below = map_points(neighbors).chunk(2)
        jacobian = torch.stack([right - here, below - here], dim=-1) / pixel + settings.damping * torch.eye(2)
        move = torch.linalg.solve_ex(jacobian, uv - here)[0].nan_to_num()
        length = move.norm(dim=1, keepdim=True).clamp_min(1e-9)
        xy = xy + move * (settings.max_step / length).clamp(max=1)
        here = map_points(xy)
        now = (here - uv).norm(dim=1)
        better = now < error
        best, error = torch.where(better[:, None], xy, best), torch.where(better, now, error)
        if error.max() < settings.tolerance_px * pixel:
            break
    return best, error


def chain_flow(
    flow: FlowField,
    points: Shaped[np.ndarray, "points 2"],
    frame: int,
    size: tuple[int, int] | None = None,
) -> PointTracks:
    """Tracks points by adding up flow from frame to frame, forwards and backwards; a lost point stays lost.

    Args:
        flow: between neighboring frames.
        points: pixel positions (x, y) in frame `frame`.
        frame: number of the frame in the run.
        size: (width, height) of the frames that positions refer to; by default the size of the flow.

    Returns:
        Positions in pixels of `size`, and where the flow can be trusted so far.
    """
    scale = np.array(flow.size) / (size or flow.size)
    count = len(flow.forward) + 1
    places = np.repeat(np.asarray(points, np.float64)[:, None] * scale, count, axis=1)
    visible = np.zeros((len(places), count), bool)
    visible[:, frame] = _inside_mask(places[:, frame], flow.size)
    for t in range(frame + 1, count):
        step, ok = _sample_flow(flow.forward[t - 1], flow.forward_ok[t - 1], places[:, t - 1])
        places[:, t] = places[:, t - 1] + step
        visible[:, t] = visible[:, t - 1] & ok & _inside_mask(places[:, t], flow.size)
    for t in range(frame - 1, -1, -1):
        step, ok = _sample_flow(flow.backward[t], flow.backward_ok[t], places[:, t + 1])
        places[:, t] = places[:, t + 1] + step
        visible[:, t] = visible[:, t + 1] & ok & _inside_mask(places[:, t], flow.size)
    return PointTracks(places / scale, visible)


# --- from chart to chart --------------------------------------------------------------------------------------------


def find_chart_series(model: PlanarModel, layer: int) -> list[Chart]:
    """Returns the charts that show the same object as a layer, in the order of time; at least one."""
    name, shape = model.layers[layer], model.shape.layers[layer]
    for series in model.list_charts():
        if any(chart.layer == name for chart in series):
            return list(series)
    return [Chart(name, 0, model.shape.frame_count - 1, shape.box)]


@torch.no_grad()
def extrapolate_layer_flow(
    model: PlanarModel,
    layers: Sequence[int],
    flow: FlowField,
    source: int,
    target: int,
    settings: TrackingSettings = DEFAULTS,
) -> tuple[Float[np.ndarray, "height width 2"], Bool[np.ndarray, "height width"]]:
    """Computes the flow of some layers between two frames, extrapolated where it is not trusted or they are hidden.

    Args:
        model: gives the weights of the layers.
        layers: numbers of the layers.
        flow: between neighboring frames.
        source: the frame whose pixels move.
        target: the next frame, or the one before.
        settings: what is seen and how far the flow is extrapolated.

    Returns:
        Vectors in pixels of the flow, and a mask of the pixels that are near enough to something trusted.
    """
    pair, is_forward = min(source, target), source < target
    vectors = np.asarray((flow.forward if is_forward else flow.backward)[pair], np.float32)
    seen = []
    for t in (source, target):
        weight = model.sample_frame(t, flow.size).weight[:, list(layers)].sum(1)
        seen.append(weight.view(vectors.shape[:2]).numpy() >= settings.min_weight)
    own = coords.pixel_centers(*flow.size).numpy()
    column, row = np.floor(own + vectors).astype(int).transpose(2, 0, 1)
    width, height = flow.size
    there = seen[1][row.clip(0, height - 1), column.clip(0, width - 1)]
    trusted = np.asarray((flow.forward_ok if is_forward else flow.backward_ok)[pair]) & seen[0] & there
    if trusted.mean() < settings.min_trusted_share:
        return np.zeros_like(vectors), np.zeros_like(trusted)
    distance = cv2.distanceTransform((~trusted).astype(np.uint8), cv2.DIST_L2, 3)
    near = distance <= settings.max_flow_gap * max(flow.size)
    return np.where(trusted[..., None], vectors, extrapolate_shifts(vectors, trusted)), near


@dataclass
class _LayerTracks:
    """Some points of one layer: their places in every frame, in xy units, and errors in pixels of the model."""

    places: Float[Tensor, "n frames 2"]
    errors: Float[Tensor, "n frames"]  # infinite once lost


def _track_in_layer(
    model: PlanarModel,
    layer: int,
    start: Float[Tensor, "n 2"],
    frame: int,
    flow: FlowField | None,
    settings: TrackingSettings,
) -> tuple[Float[Tensor, "n frames 2"], Float[Tensor, "n frames"]]:
    """Tracks points of a layer; returns xy in every frame, and errors in pixels of the model, infinite once lost."""
    count, series = model.shape.frame_count, find_chart_series(model, layer)
    name, pixel = model.layers[layer], 2 / max(model.shape.size)
    own = [index for index, chart in enumerate(series) if chart.layer == name]
    nearest = min(own, key=lambda index: max(series[index].first - frame, frame - series[index].last, 0))
    tracks = _LayerTracks(start[:, None].repeat(1, count, 1), torch.zeros(len(start), count))
    for step in (1, -1):
        index, t = nearest, frame
        while True:
            following = series[index + step] if 0 <= index + step < len(series) else None
            stop, next_frame = (
                choose_handover_frames(series[index], following) if following else ((count - 1) * (step > 0), 0)
            )
            if following and (stop - t) * step < 0:  # already beyond the middle of what both have
                stop = next_frame = t

            # From the places in frame `t` through the other frames of this chart.
            mapping: Mapping = model.mappings[model.layers.index(series[index].layer)]
            before = tracks.places[:, t]
            lost = torch.isinf(tracks.errors[:, t])
            uv, moved = mapping(_make_xyt(model, before, t)), torch.zeros_like(before)
            for here in range(t + step, stop + step, step):
                time = float(coords.normalize_time(here, count))
                found, error = solve_near(mapping, uv, before + moved, time, pixel, settings)
                again, other = solve_near(mapping, uv, before, time, pixel, settings)  # a wrong guess may end elsewhere
                swap = other < settings.restart_error_ratio * error
                found, error = torch.where(swap[:, None], again, found), torch.where(swap, other, error)
                error = torch.where(lost, torch.inf, error / (pixel * mapping.uv_scale))
                tracks.places[:, here], tracks.errors[:, here] = found, error
                shown = (error < settings.max_error_px)[:, None]
                moved = torch.where(shown, found - before, moved)
                before = torch.where(shown, found, before + moved)
            if following is None:
                break

            # Over to the next chart: in a frame that both have, or along the flow.
            place, known = tracks.places[:, stop], tracks.errors[:, stop] < settings.max_error_px
            if stop != next_frame and flow is None:
                known = torch.zeros_like(known)
            elif stop != next_frame and flow is not None:
                both = sorted({model.layers.index(chart.layer) for chart in (series[index], following)})
                vectors, near = extrapolate_layer_flow(model, both, flow, stop, next_frame, settings)
                pixels = coords.denormalize_pixels(place, *flow.size).double().numpy()
                move, trusted = _sample_flow(vectors, near, pixels)
                outside = np.maximum(-pixels, pixels - np.array(flow.size)).max(1)
                is_near = outside <= settings.max_flow_gap * max(flow.size)
                place = coords.normalize_pixels(torch.from_numpy(pixels + move).float(), *flow.size)
                known = known & torch.from_numpy(trusted & is_near)
            beyond = slice(next_frame, count) if step > 0 else slice(0, next_frame + 1)
            tracks.places[:, beyond] = place[:, None]
            tracks.errors[:, beyond] = torch.where(known, 0.0, torch.inf)[:, None]
            index, t = index + step, next_frame
    return tracks.places, tracks.errors


def _make_xyt(model: PlanarModel, xy: Float[Tensor, "n 2"], t: int) -> Float[Tensor, "n 3"]:
    time = float(coords.normalize_time(t, model.shape.frame_count))
    return torch.cat([xy, xy.new_full((len(xy), 1), time)], dim=1)


def _sample_flow(
    vectors: Shaped[np.ndarray, "height width 2"], ok: Bool[np.ndarray, "height width"], points: np.ndarray
) -> tuple[Float[np.ndarray, "points 2"], Bool[np.ndarray, " points"]]:
    """Samples flow between pixel centers; also tells whether the pixel that holds the point can be trusted."""
    height, width = ok.shape
    x, y = (np.ascontiguousarray(points[:, axis, None] - 0.5, np.float32) for axis in (0, 1))
    field = np.asarray(vectors, np.float32)
    step = cv2.remap(field, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[:, 0]
    column, row = np.floor(points[:, 0]).astype(int), np.floor(points[:, 1]).astype(int)
    trusted = np.asarray(ok)[row.clip(0, height - 1), column.clip(0, width - 1)]
    return step.astype(np.float64), trusted


def _inside_mask(points: np.ndarray, size: tuple[int, int]) -> Bool[np.ndarray, " points"]:
    return np.asarray(((points >= 0) & (points < size)).all(-1))
