"""Propagates a mask or a label map, painted on one frame, to all others.

With a trained model, the labels of a frame are lifted to the canonical planes of the layers that are visible there, and
every frame samples the labels of the layers that it shows. Where one chart of a layer ends, the labels are carried over
to the next as points are (`points.py`). `chain_labels` is the baseline that the model has to beat.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped

from neural_fields.atlas.chart import choose_handover_frames
from neural_fields.core import coords
from neural_fields.core.box import Box
from neural_fields.data.flow.compute import FlowField, resize_mask, resize_vectors
from neural_fields.planar.composition.model import PlanarModel
from neural_fields.tracking.points import extrapolate_layer_flow, find_chart_series


@dataclass(frozen=True)
class LabelSettings:
    """Settings of label propagation."""

    texels_per_pixel: float = 2.0  # label texels along each side of a pixel of the model's size
    max_texels: int = 16_000_000  # most label texels of a layer; the labels of a larger canonical plane are coarser
    min_weight: float = 0.5  # a pixel shows the layer that has more than this weight in it
    rim_px: int = 2  # pixels within this distance of a layer's outline may have the label of the layer beside it
    # A label that covers this share of a layer belongs to it, with the thin slivers at its outline.
    min_home_share: float = 0.2


DEFAULTS = LabelSettings()


@dataclass(frozen=True)
class LabelPlane:
    """Holds the labels of a layer's canonical plane."""

    labels: Int[np.ndarray, "rows columns"]
    box: Box

    def sample_labels(self, uv: Float[np.ndarray, "*n 2"]) -> Int[np.ndarray, "*n"]:
        """Returns the label of the nearest texel; beyond the box that of its rim."""
        row, column = _find_texels(uv, self.box, self.labels.shape)
        return self.labels[row, column]


def propagate_label_map(
    model: PlanarModel,
    labels: Int[np.ndarray, "h w"],
    frame: int,
    flow: FlowField | None = None,
    settings: LabelSettings = DEFAULTS,
) -> Iterator[Int[np.ndarray, "h w"]]:
    """Yields the labels of every frame, given those of one.

    Args:
        model: a trained model.
        labels: whole numbers at the size of the model.
        frame: the frame that they belong to.
        flow: carries labels from one chart of a layer to the next; without it the labels at the rim of the first chart
            continue.
        settings: size of the planes, and the treatment of outlines.

    Yields:
        Frame by frame: each pixel has the label that its strongest layer has at the pixel's uv. A canonical point that
        `frame` does not show has the label of the nearest point of its layer that it shows well inside the layer's
        outline; a layer that `frame` does not show at all has label 0. `frame` itself keeps what it was given.
    """
    planes = compute_label_planes(model, labels, frame, flow, settings)
    for t in range(model.shape.frame_count):
        if t == frame:
            yield labels
            continue
        weight, uv = _evaluate_frame(model, t)
        strongest = weight.argmax(-1)
        found = np.zeros(strongest.shape, labels.dtype)
        for layer, plane in enumerate(planes[t]):
            own = strongest == layer
            found[own] = plane.sample_labels(uv[layer][own])
        yield found


def compute_label_planes(
    model: PlanarModel,
    labels: Int[np.ndarray, "h w"],
    frame: int,
    flow: FlowField | None = None,
    settings: LabelSettings = DEFAULTS,
) -> list[list[LabelPlane]]:
    """Computes the labels on the canonical planes of all layers for every frame.

    Each chart that begins, from `frame` in both directions, gets a new plane.

    Args:
        model: the trained model.
        labels: the class of each pixel of `frame`.
        frame: index of the labeled frame.
        flow: optical flow from chart to chart; None for models with a single chart.
        settings: size of the planes, and the treatment of outlines.

    Returns:
        The planes of each frame, front to back.
    """
    planes = lift_labels(model, labels, frame, settings)
    count, names = model.shape.frame_count, model.layers
    all_series = []
    for layer in range(len(names)):
        series = find_chart_series(model, layer)
        if series not in all_series:
            all_series.append(series)
    result = [planes] * count
    for step, order in ((1, range(frame, count)), (-1, range(frame, -1, -1))):
        ways = []
        for series in all_series:
            for start, end in pairwise(series[::step]):
                ways.append(
                    _LabelHandover(
                        names.index(start.layer), names.index(end.layer), *choose_handover_frames(start, end)
                    )
                )
        now = planes
        for t in order:
            for way in ways:
                if way.target == t != frame and (way.source - frame) * step >= 0:
                    now = _hand_over_labels(model, now, way, flow, settings)
            result[t] = now
    return result


def lift_labels(
    model: PlanarModel, labels: Int[np.ndarray, "h w"], frame: int, settings: LabelSettings = DEFAULTS
) -> list[LabelPlane]:
    """Lifts the labels of a frame to the canonical plane of every layer, front to back.

    Where a label extends a little beyond the outline of its layer, this sliver is left out: the outlines of labels and
    of layers never agree to the pixel, and a sliver of the object's label on the ground would stay behind when the
    object moves. Larger parts beyond the outline are kept where they were drawn, but not extended behind other layers.

    Args:
        model: a trained model.
        labels: whole numbers, at the size of the model.
        frame: number of the labeled frame in the run.
        settings: density of the planes, and the treatment of outlines.

    Returns:
        One plane for each layer.

    Raises:
        ValueError: labels of another size.
    """
    weight, uv = _evaluate_frame(model, frame)
    if labels.shape != weight.shape[:2]:
        raise ValueError(f"labels of {labels.shape} for frames of {weight.shape[:2]}: resize them first")
    seen = [_visibility_mask(model, weight, layer, frame, settings) for layer in range(len(model.layers))]
    planes = []
    for layer in range(len(model.layers)):
        # Labels that are at home on another layer: slivers of them, and all that they cover here.
        slivers, guests = np.zeros(labels.shape, bool), np.zeros(labels.shape, bool)
        for label in np.unique(labels[seen[layer]]):
            parts = [part & (labels == label) for part in seen]
            own = parts[layer]
            largest = max(int(part.sum()) for part in parts)
            thick = cv2.morphologyEx(own.astype(np.uint8), cv2.MORPH_OPEN, _rim_kernel(settings)) > 0
            if largest > own.sum() and thick.sum() < settings.min_home_share * seen[layer].sum():
                slivers |= own & ~thick
                guests |= own
        trusted = seen[layer] & ~slivers
        box = _chart_box(model, layer, frame)
        planes.append(_lift_to_plane(model, labels, uv[layer], trusted, trusted & ~guests, box, settings))
    return planes


def _lift_to_plane(
    model: PlanarModel,
    labels: Int[np.ndarray, "h w"],
    uv: Float[np.ndarray, "h w 2"],
    trusted: Bool[np.ndarray, "h w"],
    at_home: Bool[np.ndarray, "h w"],
    box: Box,
    settings: LabelSettings,
) -> LabelPlane:
    """Lays the labels of some pixels on one plane: those well inside spread, those of the rim stay where they are.

    Args:
        model: gives the size of the frame.
        labels: labels of all pixels of a frame.
        uv: canonical positions of all pixels.
        trusted: the pixels whose labels count.
        at_home: the pixels whose labels may spread.
        box: the part of the canonical plane that the result covers.
        settings: texels and rim.
    """
    density = min(
        settings.texels_per_pixel * max(model.shape.size) / 2,
        (settings.max_texels / max(box.width * box.height, 1e-9)) ** 0.5,
    )
    shape = (max(1, round(box.height * density)), max(1, round(box.width * density)))
    # Labels well inside, each spread to the texels that are nearest to it.
    core = cv2.erode(at_home.astype(np.uint8), _rim_kernel(settings)) > 0
    inner = core if core.any() else trusted
    result = np.zeros(shape, labels.dtype)
    if inner.any():
        row, column = _find_texels(uv[inner], box, shape)
        unknown = np.ones(shape, bool)
        unknown[row, column] = False
        result = _fill_nearest(unknown, (row, column), labels[inner])
    # All labels, each as large as a pixel.
    if trusted.any():
        row, column = _find_texels(uv[trusted], box, shape)
        known = np.zeros(shape, np.uint8)
        known[row, column] = 1
        near = cv2.dilate(known, np.ones((3, 3), np.uint8)) > 0
        result[near] = _fill_nearest(known == 0, (row, column), labels[trusted])[near]
    return LabelPlane(result, box)


def _rim_kernel(settings: LabelSettings) -> np.ndarray:
    """Returns the kernel that erodes the rim of a layer."""
    return np.ones((2 * settings.rim_px + 1, 2 * settings.rim_px + 1), np.uint8)


def _visibility_mask(
    model: PlanarModel, weight: Float[np.ndarray, "h w layers"], layer: int, t: int, settings: LabelSettings
) -> Bool[np.ndarray, "h w"]:
    """Returns the pixels of a frame that show a layer; charts that fade into each other count as one."""
    series = find_chart_series(model, layer)
    if not any(chart.layer == model.layers[layer] and chart.first <= t <= chart.last for chart in series):
        return np.zeros(weight.shape[:2], bool)
    numbers = sorted({model.layers.index(chart.layer) for chart in series})
    return weight[..., numbers].sum(-1) > settings.min_weight


def _chart_box(model: PlanarModel, layer: int, t: int) -> Box:
    """Returns the box on a layer's canonical plane that a frame uses: of one of its charts, or of all of it."""
    own = [chart for chart in find_chart_series(model, layer) if chart.layer == model.layers[layer]]
    return next((chart.box for chart in own if chart.first <= t <= chart.last), model.shape.layers[layer].box)


@dataclass(frozen=True)
class _LabelHandover:
    """From one chart to the next: the layers that they belong to, and the frames by which to go."""

    start: int
    end: int
    source: int
    target: int


def _hand_over_labels(
    model: PlanarModel, planes: list[LabelPlane], way: _LabelHandover, flow: FlowField | None, settings: LabelSettings
) -> list[LabelPlane]:
    """Returns the planes with that of a chart which begins: it has the labels that the chart before it shows there."""
    both = sorted({way.start, way.end})
    _, before = _evaluate_frame(model, way.source)
    weight, uv = _evaluate_frame(model, way.target)
    labels = planes[way.start].sample_labels(before[way.start])
    seen = _visibility_mask(model, weight, way.end, way.target, settings)
    if way.source != way.target:
        if flow is None:
            return planes
        vectors, near = extrapolate_layer_flow(model, both, flow, way.target, way.source)
        vectors = resize_vectors(vectors, model.shape.size)
        place = coords.pixel_centers(*model.shape.size).numpy() + vectors
        column, row = np.floor(place).astype(int).transpose(2, 0, 1)
        height, width = labels.shape
        seen &= resize_mask(near, model.shape.size) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        labels = labels[row.clip(0, height - 1), column.clip(0, width - 1)]
    box = _chart_box(model, way.end, way.target)
    plane = _lift_to_plane(model, labels, uv[way.end], seen, seen, box, settings)
    return [plane if layer == way.end else other for layer, other in enumerate(planes)]


def chain_labels(flow: FlowField, labels: Int[np.ndarray, "h w"], frame: int) -> Iterator[Int[np.ndarray, "h w"]]:
    """Yields the labels of every frame by chained flow, which leads each pixel back to the frame with labels.

    A pixel whose path crosses flow that is not trusted gets label 0: that is better than following such flow.

    Args:
        flow: between neighboring frames.
        labels: whole numbers, at the size of the flow.
        frame: number of the labeled frame in the run.
    """
    height, width = labels.shape
    count = len(flow.forward) + 1
    own = coords.pixel_centers(width, height).numpy()
    origins, known = {frame: own}, {frame: np.ones((height, width), bool)}
    for t in range(frame + 1, count):
        steps = own + np.asarray(flow.backward[t - 1], np.float32)
        origins[t] = _sample_field(origins[t - 1], steps)
        known[t] = flow.backward_ok[t - 1] & (_sample_field(known[t - 1].astype(np.float32), steps) > 0.5)
    for t in range(frame - 1, -1, -1):
        steps = own + np.asarray(flow.forward[t], np.float32)
        origins[t] = _sample_field(origins[t + 1], steps)
        known[t] = flow.forward_ok[t] & (_sample_field(known[t + 1].astype(np.float32), steps) > 0.5)
    for t in range(count):
        column, row = np.floor(origins[t]).astype(int).transpose(2, 0, 1)
        found = labels[row.clip(0, height - 1), column.clip(0, width - 1)]
        yield np.where(known[t], found, 0)


def _fill_nearest(
    unknown: Bool[np.ndarray, "rows columns"], places: tuple[np.ndarray, np.ndarray], labels: Shaped[np.ndarray, " n"]
) -> Shaped[np.ndarray, "rows columns"]:
    """Fills an image with the label of the nearest known place."""
    values = np.zeros(unknown.shape, labels.dtype)
    values[places] = labels
    _, nearest = cv2.distanceTransformWithLabels(
        unknown.astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    of_seed = np.zeros(int(nearest.max()) + 1, labels.dtype)
    of_seed[nearest[~unknown]] = values[~unknown]
    return of_seed[nearest]


def _find_texels(
    uv: Float[np.ndarray, "*n 2"], box: Box, shape: tuple[int, int]
) -> tuple[Int[np.ndarray, "*n"], Int[np.ndarray, "*n"]]:
    """Returns row and column of the texel that holds each uv."""
    column = np.floor((uv[..., 0] - box.u0) / box.width * shape[1]).astype(int).clip(0, shape[1] - 1)
    row = np.floor((uv[..., 1] - box.v0) / box.height * shape[0]).astype(int).clip(0, shape[0] - 1)
    return row, column


@torch.no_grad()
def _evaluate_frame(
    model: PlanarModel, t: int
) -> tuple[Float[np.ndarray, "h w layers"], Float[np.ndarray, "layers h w 2"]]:
    """Evaluates the model in a whole frame: weights and uv."""
    width, height = model.shape.size
    samples = model.sample_frame(t, (width, height))
    assert samples.uv is not None
    weight = samples.weight.reshape(height, width, -1).numpy()
    return weight, samples.uv.movedim(1, 0).reshape(-1, height, width, 2).numpy()


def _sample_field(
    field: Float[np.ndarray, "h w *channels"], points: Float[np.ndarray, "h w 2"]
) -> Float[np.ndarray, "h w *channels"]:
    """Samples a field bilinearly at pixel positions; its edge is repeated outside."""
    x, y = (np.ascontiguousarray(points[..., axis] - 0.5, np.float32) for axis in (0, 1))
    return cv2.remap(field, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
