"""Following points through a fitted model: to the canonical plane, and from there to where every frame shows it.

Plain flow chaining, which the model has to beat, stands beside it.
"""

from __future__ import annotations

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

__all__ = ["Tracks", "chain_flow", "solve_near", "track", "uv_at"]

ROUNDS = 8  # Newton steps from the last frame's position; a mapping that is nearly affine needs two or three
LONGEST_MOVE = 0.1  # xy units a step, so that a fold does not throw a point across the frame
NEAR = 0.5  # pixels of uv error that still count as found


@torch.no_grad()
def track(
    model: PlanarModel,
    points: Shaped[np.ndarray, "points 2"],
    frame: int,
    layers: Int[np.ndarray, " points"] | None = None,
    size: tuple[int, int] | None = None,
) -> Tracks:
    """Follows points seen in one frame through all frames.

    A point belongs to the layer with the largest weight there. Its uv is looked for in every other frame, outwards from
    `frame`, each time near where the frame before had it: where a mapping shows a uv twice, the nearer place is taken.

    Args:
        points: pixel positions (x, y) in frame `frame`.
        layers: the layer of each point, where it is known.
        size: (width, height) that positions are pixels of; by default that of the fit.

    Returns:
        A point is visible where it lies in the frame, its layer has more than half of the weight, and its uv was found
        to within `NEAR` pixels.
    """
    width, height = size or model.shape.size
    start = coords.normalise_pixels(torch.from_numpy(np.asarray(points, np.float32)), width, height)
    samples = model(_xyt(model, start, frame))
    assert samples.uv is not None
    chosen = samples.weight.argmax(1) if layers is None else torch.from_numpy(layers)
    count = model.shape.frame_count
    places = start[:, None].repeat(1, count, 1)
    error = torch.zeros(len(start), count)
    for number, mapping in enumerate(model.mappings):
        own = (chosen == number).nonzero()[:, 0]
        if len(own):
            uv = samples.uv[own, number]
            places[own], error[own] = _follow(model, mapping, uv, start[own], frame)  # type: ignore[arg-type]
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


def _follow(
    model: PlanarModel, mapping: Mapping, uv: Float[Tensor, "n 2"], start: Float[Tensor, "n 2"], frame: int
) -> tuple[Float[Tensor, "n frames 2"], Float[Tensor, "n frames"]]:
    """xy of uv in every frame, and the error that is left, in pixels of the fit."""
    count, pixel = model.shape.frame_count, 2 / max(model.shape.size)
    places, errors = start[:, None].repeat(1, count, 1), torch.zeros(len(start), count)
    for order in (range(frame + 1, count), range(frame - 1, -1, -1)):
        before, moved = start, torch.zeros_like(start)
        for t in order:
            time = float(coords.normalise_time(t, count))
            found, error = solve_near(mapping, uv, before + moved, time, pixel)
            again, other = solve_near(mapping, uv, before, time, pixel)  # a guess that was off may end elsewhere
            swap = other < 0.5 * error
            found, error = torch.where(swap[:, None], again, found), torch.where(swap, other, error)
            places[:, t], errors[:, t] = found, error / (pixel * mapping.uv_scale)
            known = (errors[:, t] < NEAR)[:, None]
            moved = torch.where(known, found - before, moved)
            before = torch.where(known, found, before + moved)
    return places, errors


def _xyt(model: PlanarModel, xy: Float[Tensor, "n 2"], t: int) -> Float[Tensor, "n 3"]:
    time = float(coords.normalise_time(t, model.shape.frame_count))
    return torch.cat([xy, xy.new_full((len(xy), 1), time)], dim=1)


def _weight(model: PlanarModel, xy: Float[Tensor, "n 2"], t: int, layers: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The weight of each point's own layer at its place."""
    return model(_xyt(model, xy, t)).weight.gather(1, layers[:, None])[:, 0]


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
