"""Do points stay put? Points are carried along the optical flow, and the canonical point under them should not change.

The flow has errors of its own, and more of them the further it is followed: a figure here is a disagreement of the two,
not the drift of an edit against the truth, which no clip without known motion can give.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt8

from neural_fields.baking import Maps
from neural_fields.data.flow import FlowField, compute_flow
from neural_fields.fit_record import FitRecord
from neural_fields.lookup import scattered
from neural_fields.run import Run

SPAN = 8  # frames that a point is carried: further, flow that is added up is no reference any more
POINTS = 2500  # that start in one frame
# Of the frame's longer side, 8.5 pixels of 854: a mark that slides less in SPAN frames hardly shows it.
STEADY = 1 / 100
FLOW_ERROR = 3.0  # pixels that flow itself may be off by after SPAN frames: small frames are not held to less
MAJORITY = 0.5  # a point belongs to the layer that has more weight than this


@dataclass(frozen=True)
class Drift:
    """How far apart flow and canonical coordinates come; pixels of the fit. None where no point could be followed."""

    next_frame: float | None  # median after one frame
    span: int  # frames of `far`
    far: float | None  # median after `span` frames
    steady: float | None  # share of the points that are within the tolerance after `span` frames
    points: int  # that were followed for `span` frames


def run_flow(run: Run, record: FitRecord, frames: UInt8[np.ndarray, "time height width 3"]) -> FlowField | None:
    """The flow of a run's frames as its fit had it: from the cache, or computed again. None for a clip of one frame."""
    if len(frames) < 2:
        return None
    size = (frames.shape[2], frames.shape[1])
    shrink = min(1.0, getattr(record.config.mapping, "flow_size", max(size)) / max(size))
    return compute_flow(frames, run.cache, record.flow, (round(size[0] * shrink), round(size[1] * shrink)))


def flow_trust(flow: FlowField) -> list[float]:
    """For each pair of neighbouring frames the share of pixels whose flow, forward and backward, agrees."""
    return [float(np.asarray(ok).mean()) for ok in flow.forward_ok]


def drifts(maps: Maps, flow: FlowField, starts: int) -> dict[str, Drift]:
    """`Drift` of every layer.

    Args:
        starts: how many frames, spread over the clip, points start in.
    """
    count = maps.frame_count
    span = min(SPAN, count - 1)
    first = np.unique(np.linspace(0, count - 1 - span, min(starts, count - span)).round().astype(int))
    found = [_followed(maps, flow, int(t), span) for t in first]
    layer, near, far = (np.concatenate([part[i] for part in found]) for i in range(3))
    limit = max(STEADY * max(maps.size), FLOW_ERROR)
    drift = {}
    for number, name in enumerate(maps.layers):
        one, many = (gap[(layer == number) & np.isfinite(gap)] for gap in (near, far))
        steady = float((many <= limit).mean()) if len(many) else None
        drift[name] = Drift(_median(one), span, _median(many), steady, len(many))
    return drift


def _followed(
    maps: Maps, flow: FlowField, start: int, span: int
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Layers of points that start in one frame, and their gaps in pixels one and `span` frames later (nan: lost)."""
    at = _lattice(maps.size)
    before, weight = _seen(maps, start, at)
    layer = weight.argmax(0)
    alive = weight.max(0) > MAJORITY
    near = np.full(len(at), np.nan)
    for t in range(start, start + span):
        at, ok = _carried(flow, t, at, maps.size)
        alive &= ok
        if t == start:
            near = _gap(maps, t + 1, at, before, layer, alive)
    return layer, near, (near if span == 1 else _gap(maps, start + span, at, before, layer, alive))


def _lattice(size: tuple[int, int]) -> Float[np.ndarray, "n 2"]:
    """About POINTS sample positions (0 is the centre of the first pixel), evenly over a frame."""
    step = max(1.0, np.sqrt(size[0] * size[1] / POINTS))
    x, y = np.meshgrid(*(np.arange(step / 2 - 0.5, side - 0.5, step) for side in size))
    return np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32)


def _carried(
    flow: FlowField, t: int, at: Float[np.ndarray, "n 2"], size: tuple[int, int]
) -> tuple[Float[np.ndarray, "n 2"], np.ndarray]:
    """Points of frame t where the flow takes them in frame t + 1, and whether that can be trusted."""
    scale = np.array(flow.size, np.float32) / np.array(size, np.float32)
    x, y = ((at + np.float32(0.5)) * scale - np.float32(0.5)).T
    step = scattered(np.asarray(flow.forward[t], np.float32), x, y)
    trusted = scattered(np.asarray(flow.forward_ok[t], np.float32), x, y) > 0.99
    to = at + step / scale
    inside = (to >= 0).all(1) & (to <= np.array(size, np.float32) - 1).all(1)
    return to.astype(np.float32), trusted & inside


def _gap(
    maps: Maps, t: int, at: np.ndarray, before: np.ndarray, layer: np.ndarray, alive: np.ndarray
) -> Float[np.ndarray, " n"]:
    """Pixels between where the flow says that a point is now and where its canonical point is; nan where it is lost.

    The canonical difference becomes a distance in the frame through the local Jacobian of the map.
    """
    here, weight = _seen(maps, t, at)
    kept = alive & (weight[layer, np.arange(len(at))] > MAJORITY)
    own = np.arange(len(at))
    beside, below = (_seen(maps, t, at + np.array(step, np.float32))[0] for step in ((1, 0), (0, 1)))
    right, down = (other[layer, own] - here[layer, own] for other in (beside, below))
    gone = before[layer, own] - here[layer, own]
    det = right[:, 0] * down[:, 1] - right[:, 1] * down[:, 0]
    det = np.where(np.abs(det) > 1e-12, det, np.nan)
    dx = (gone[:, 0] * down[:, 1] - gone[:, 1] * down[:, 0]) / det
    dy = (right[:, 0] * gone[:, 1] - right[:, 1] * gone[:, 0]) / det
    return np.where(kept, np.hypot(dx, dy), np.nan)


def _seen(
    maps: Maps, t: int, at: Float[np.ndarray, "n 2"]
) -> tuple[Float[np.ndarray, "layers n 2"], Float[np.ndarray, "layers n"]]:
    x, y = np.ascontiguousarray(at.T)
    samples = maps.at(t, x, y, maps.size)
    return samples.uv, samples.weight


def _median(values: np.ndarray) -> float | None:
    return float(np.median(values)) if len(values) else None
