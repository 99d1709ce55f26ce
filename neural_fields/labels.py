"""Labels carried from one frame to all others: a mask, or any picture of classes, painted once.

Through a fitted model: the labels of a frame are laid on the canonical planes of the layers that show there, and every
frame looks up the label of the layer it shows. Where one sheet of a layer, or one segment of the clip, ends, the labels
go over to the next as points do (`tracking.py`). Plain flow chaining, which the model has to beat, stands beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped

from neural_fields import coords
from neural_fields.coords import Box
from neural_fields.data.flow import FlowField, resize_mask, resize_vectors
from neural_fields.planar.model import PlanarModel
from neural_fields.tracking import carried, hand_over, series_of

FINENESS = 2.0  # label texels per pixel of the fit, along each side
MOST_TEXELS = 16_000_000  # of one layer's labels; a larger canonical plane gets coarser ones
SURE = 0.5  # a layer with more weight than this is what a pixel shows
RIM = 2  # pixels: so near to a layer's outline, a label may be that of the layer beside it
AT_HOME = 0.2  # share of a layer that makes a label belong to it, slivers and all
SQUARE = np.ones((2 * RIM + 1, 2 * RIM + 1), np.uint8)


@dataclass(frozen=True)
class LabelPlane:
    """The labels of one layer's canonical plane."""

    labels: Int[np.ndarray, "rows columns"]
    box: Box

    def at(self, uv: Float[np.ndarray, "*n 2"]) -> Int[np.ndarray, "*n"]:
        """The label of the nearest texel; beyond the box that of its rim."""
        row, column = _texels(uv, self.box, self.labels.shape)
        return self.labels[row, column]


def propagate(
    model: PlanarModel, labels: Int[np.ndarray, "h w"], frame: int, flow: FlowField | None = None
) -> Iterator[Int[np.ndarray, "h w"]]:
    """The labels of every frame, given those of one.

    Args:
        labels: whole numbers at the size of the fit.
        frame: the frame that they belong to.
        flow: takes labels from one sheet of a layer to the next; without it those of the first one's rim go on.

    Returns:
        Frame by frame: each pixel has the label that its strongest layer has at the pixel's uv. A canonical point that
        `frame` does not show has the label of the nearest point of its layer that it shows well inside the layer's
        outline; a layer that `frame` does not show at all has label 0. `frame` itself keeps what it was given.
    """
    planes = label_planes(model, labels, frame, flow)
    for t in range(model.shape.frame_count):
        if t == frame:
            yield labels
            continue
        weight, uv = _maps(model, t)
        seen = weight.argmax(-1)
        found = np.zeros(seen.shape, labels.dtype)
        for layer, plane in enumerate(planes[t]):
            own = seen == layer
            found[own] = plane.at(uv[layer][own])
        yield found


def label_planes(
    model: PlanarModel, labels: Int[np.ndarray, "h w"], frame: int, flow: FlowField | None = None
) -> list[list[LabelPlane]]:
    """For every frame the labels of the canonical planes of all layers, front to back; arguments as of `propagate`."""
    return _planes_of_frames(model, lift_labels(model, labels, frame), frame, flow)


def resize_labels(labels: Int[np.ndarray, "h w"], size: tuple[int, int]) -> Int[np.ndarray, "rows columns"]:
    """Labels at another size (width, height): each pixel has the label of the one that holds its centre."""
    row, column = (
        np.minimum(((np.arange(to) + 0.5) * (side / to)).astype(int), side - 1)
        for side, to in zip(labels.shape, size[::-1], strict=True)
    )
    return labels[row[:, None], column]


def lift_labels(model: PlanarModel, labels: Int[np.ndarray, "h w"], frame: int) -> list[LabelPlane]:
    """The labels of a frame laid on the canonical plane of every layer, front to back.

    Where a label reaches over the outline of its layer, the sliver is left out: the outlines of labels and of layers
    never agree to the pixel, and a sliver of the object left on the ground would stay behind when the object moves.
    What reaches further over stays where it was drawn, and does not go on into what is hidden there.
    """
    weight, uv = _maps(model, frame)
    if labels.shape != weight.shape[:2]:
        raise ValueError(f"labels of {labels.shape} for frames of {weight.shape[:2]}: resize them first")
    seen = [_seen(model, weight, layer, frame) for layer in range(len(model.layers))]
    planes = []
    for layer in range(len(model.layers)):
        slivers, guests = _strays(labels, seen, layer)
        planes.append(_lifted(model, labels, uv[layer], seen[layer] & ~slivers, _box(model, layer, frame), guests))
    return planes


def _lifted(
    model: PlanarModel,
    labels: Int[np.ndarray, "h w"],
    uv: Float[np.ndarray, "h w 2"],
    trusted: Bool[np.ndarray, "h w"],
    box: Box,
    guests: Bool[np.ndarray, "h w"] | None = None,
) -> LabelPlane:
    """The labels of some pixels laid on one plane: those well inside spread, those of the rim stay where they are.

    Args:
        guests: pixels whose labels stay where they are in any case.
    """
    at_home = trusted if guests is None else trusted & ~guests
    core = cv2.erode(at_home.astype(np.uint8), SQUARE) > 0
    inner = core if core.any() else trusted
    plane = _plane(uv[inner], labels[inner], box, model.shape.size)
    return _with_rim(plane, uv[trusted], labels[trusted])


def _seen(model: PlanarModel, weight: Float[np.ndarray, "h w layers"], layer: int, t: int) -> Bool[np.ndarray, "h w"]:
    """Where a layer shows in a frame; segments that fade into each other show the same, so they count as one."""
    series = series_of(model, layer)
    if not any(chart.layer == model.layers[layer] and chart.first <= t <= chart.last for chart in series):
        return np.zeros(weight.shape[:2], bool)
    return weight[..., sorted({model.layers.index(chart.layer) for chart in series})].sum(-1) > SURE


def _box(model: PlanarModel, layer: int, t: int) -> Box:
    """What a layer's canonical plane holds for a frame: one of its sheets, or all of it."""
    own = [chart for chart in series_of(model, layer) if chart.layer == model.layers[layer]]
    return next((chart.box for chart in own if chart.first <= t <= chart.last), model.shape.layers[layer].box)


@dataclass(frozen=True)
class _Way:
    """From one chart to the next: the layers that they belong to, and the frames by which to go."""

    start: int
    end: int
    source: int
    target: int


def _ways(model: PlanarModel, step: int) -> list[_Way]:
    """All ways between charts, forwards (1) or backwards (-1) in time."""
    every = [series_of(model, layer) for layer in range(len(model.layers))]
    unique = [series for index, series in enumerate(every) if series not in every[:index]]
    pairs = [pair for series in unique for pair in pairwise(series[::step])]
    number = model.layers.index
    return [_Way(number(start.layer), number(end.layer), *hand_over(start, end)) for start, end in pairs]


def _planes_of_frames(
    model: PlanarModel, planes: list[LabelPlane], frame: int, flow: FlowField | None
) -> list[list[LabelPlane]]:
    """The planes of all layers for every frame, from those for `frame` outwards; charts that begin get new ones."""
    count = model.shape.frame_count
    result = [planes] * count
    for step, order in ((1, range(frame, count)), (-1, range(frame, -1, -1))):
        ways, now = _ways(model, step), planes
        for t in order:
            for way in ways:
                if way.target == t != frame and (way.source - frame) * step >= 0:
                    now = _gone_over(model, now, way, flow)
            result[t] = now
    return result


def _gone_over(model: PlanarModel, planes: list[LabelPlane], way: _Way, flow: FlowField | None) -> list[LabelPlane]:
    """The planes with that of a chart which begins: it has the labels that the chart before it shows beside it."""
    both = sorted({way.start, way.end})
    _, before = _maps(model, way.source)
    weight, uv = _maps(model, way.target)
    labels, seen = planes[way.start].at(before[way.start]), _seen(model, weight, way.end, way.target)
    if way.source != way.target:
        if flow is None:
            return planes
        vectors, near = carried(model, both, flow, way.target, way.source)
        vectors = resize_vectors(vectors, model.shape.size)
        place = coords.pixel_centres(*model.shape.size).numpy() + vectors
        column, row = np.floor(place).astype(int).transpose(2, 0, 1)
        height, width = labels.shape
        seen &= resize_mask(near, model.shape.size) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        labels = labels[row.clip(0, height - 1), column.clip(0, width - 1)]
    plane = _lifted(model, labels, uv[way.end], seen, _box(model, way.end, way.target))
    return [plane if layer == way.end else other for layer, other in enumerate(planes)]


def _strays(
    labels: Int[np.ndarray, "h w"], seen: list[Bool[np.ndarray, "h w"]], layer: int
) -> tuple[Bool[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
    """Pixels of a layer whose label is at home on another one: slivers of it, and all that it has here."""
    slivers, guests = np.zeros(labels.shape, bool), np.zeros(labels.shape, bool)
    for label in np.unique(labels[seen[layer]]):
        parts = [part & (labels == label) for part in seen]
        home = max(range(len(parts)), key=lambda number: int(parts[number].sum()))
        thick = cv2.morphologyEx(parts[layer].astype(np.uint8), cv2.MORPH_OPEN, SQUARE) > 0
        if parts[home].sum() > parts[layer].sum() and thick.sum() < AT_HOME * seen[layer].sum():
            slivers |= parts[layer] & ~thick
            guests |= parts[layer]
    return slivers, guests


def chain_labels(flow: FlowField, labels: Int[np.ndarray, "h w"], frame: int) -> Iterator[Int[np.ndarray, "h w"]]:
    """The same by plain flow: every pixel follows the flow back, pair by pair, to the frame that has labels.

    A pixel whose way back is broken somewhere, by the masks of the flow, has label 0: that does better than going on.

    Args:
        labels: at the size of the flow.
        frame: the frame that they belong to.
    """
    height, width = labels.shape
    count = len(flow.forward) + 1
    own = coords.pixel_centres(width, height).numpy()
    origins, known = {frame: own}, {frame: np.ones((height, width), bool)}
    for t in range(frame + 1, count):
        steps = own + np.asarray(flow.backward[t - 1], np.float32)
        origins[t] = _looked_up(origins[t - 1], steps)
        known[t] = flow.backward_ok[t - 1] & (_looked_up(known[t - 1].astype(np.float32), steps) > 0.5)
    for t in range(frame - 1, -1, -1):
        steps = own + np.asarray(flow.forward[t], np.float32)
        origins[t] = _looked_up(origins[t + 1], steps)
        known[t] = flow.forward_ok[t] & (_looked_up(known[t + 1].astype(np.float32), steps) > 0.5)
    for t in range(count):
        column, row = np.floor(origins[t]).astype(int).transpose(2, 0, 1)
        found = labels[row.clip(0, height - 1), column.clip(0, width - 1)]
        yield np.where(known[t], found, 0)


def _plane(
    uv: Float[np.ndarray, "n 2"], labels: Shaped[np.ndarray, " n"], box: Box, size: tuple[int, int]
) -> LabelPlane:
    """Labels at scattered points, each spread to the texels that are nearest to it."""
    density = min(FINENESS * max(size) / 2, (MOST_TEXELS / max(box.width * box.height, 1e-9)) ** 0.5)
    shape = (max(1, round(box.height * density)), max(1, round(box.width * density)))
    if not len(labels):
        return LabelPlane(np.zeros(shape, labels.dtype), box)
    row, column = _texels(uv, box, shape)
    unknown = np.ones(shape, bool)
    unknown[row, column] = False
    return LabelPlane(_nearest(unknown, (row, column), labels), box)


def _with_rim(plane: LabelPlane, uv: Float[np.ndarray, "n 2"], labels: Shaped[np.ndarray, " n"]) -> LabelPlane:
    """The plane with the labels of all points that were seen, each as large as a pixel."""
    result = plane.labels.copy()
    row, column = _texels(uv, plane.box, result.shape)
    known = np.zeros(result.shape, np.uint8)
    known[row, column] = 1
    near = cv2.dilate(known, np.ones((3, 3), np.uint8)) > 0
    if len(uv):
        result[near] = _nearest(known == 0, (row, column), labels)[near]
    return LabelPlane(result, plane.box)


def _nearest(
    unknown: Bool[np.ndarray, "rows columns"], places: tuple[np.ndarray, np.ndarray], labels: Shaped[np.ndarray, " n"]
) -> Shaped[np.ndarray, "rows columns"]:
    """The label of the nearest known place, everywhere."""
    values = np.zeros(unknown.shape, labels.dtype)
    values[places] = labels
    _, nearest = cv2.distanceTransformWithLabels(
        unknown.astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    of_seed = np.zeros(int(nearest.max()) + 1, labels.dtype)
    of_seed[nearest[~unknown]] = values[~unknown]
    return of_seed[nearest]


def _texels(
    uv: Float[np.ndarray, "*n 2"], box: Box, shape: tuple[int, int]
) -> tuple[Int[np.ndarray, "*n"], Int[np.ndarray, "*n"]]:
    """Row and column of the texel that holds each uv."""
    column = np.floor((uv[..., 0] - box.u0) / box.width * shape[1]).astype(int).clip(0, shape[1] - 1)
    row = np.floor((uv[..., 1] - box.v0) / box.height * shape[0]).astype(int).clip(0, shape[0] - 1)
    return row, column


@torch.no_grad()
def _maps(model: PlanarModel, t: int) -> tuple[Float[np.ndarray, "h w layers"], Float[np.ndarray, "layers h w 2"]]:
    """Weights and uv of a whole frame."""
    width, height = model.shape.size
    samples = model.frame(t, (width, height))
    assert samples.uv is not None
    weight = samples.weight.reshape(height, width, -1).numpy()
    return weight, samples.uv.movedim(1, 0).reshape(-1, height, width, 2).numpy()


def _looked_up(
    field: Float[np.ndarray, "h w *channels"], points: Float[np.ndarray, "h w 2"]
) -> Float[np.ndarray, "h w *channels"]:
    """Bilinear values of a field at pixel positions; beyond the rim the rim goes on."""
    x, y = (np.ascontiguousarray(points[..., axis] - 0.5, np.float32) for axis in (0, 1))
    return cv2.remap(field, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
